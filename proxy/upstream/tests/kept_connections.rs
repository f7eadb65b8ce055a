//! Kept connections: reused while they stand, never the reason for an error, returned when both bodies are done.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod common;

use std::{
    cell::{Cell, RefCell},
    io::{Read, Write},
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use beamline_upstream::{ErrorKind, PoolSettings, Pools, SendOptions, Sentness};
use bytes::Bytes;
use common::*;
use http::Method;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn the_next_request_takes_the_kept_connection() {
    on_a_worker(async {
        let origin = Origin::echo().await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        for i in 0..5 {
            let sent = send(&pools, &cluster, get(&format!("/{i}"))).await.unwrap();
            assert_eq!(sent.attempts.len(), 1);
            assert_eq!(sent.attempts[0].peer, Some(origin.addr));
            assert_eq!(sent.attempts[0].reused, i > 0);
            assert_eq!(sent.attempts[0].status.unwrap(), 200);
            assert_eq!(text(sent).await, format!("GET /{i} HTTP/1.1"));
        }
        assert_eq!((origin.connections.get(), pools.idle()), (1, 1));
    });
}

#[test]
fn the_newest_connection_is_taken_first() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, number| async move {
            while read_request(&mut stream).await?.is_some() {
                respond(&mut stream, "200 OK", "", number.to_string().as_bytes()).await?;
            }
            Ok(())
        })
        .await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        let (a, b, c) = tokio::join!(
            send(&pools, &cluster, get("/")),
            send(&pools, &cluster, get("/")),
            send(&pools, &cluster, get("/"))
        );
        for sent in [a, b, c] {
            sent.unwrap();
        }
        assert_eq!(pools.idle(), 3);
        let first = text(send(&pools, &cluster, get("/")).await.unwrap()).await;
        for _ in 0..10 {
            assert_eq!(text(send(&pools, &cluster, get("/")).await.unwrap()).await, first);
        }
    });
}

/// An origin on a thread of its own, so that its closes race with requests for real. It serves each connection on
/// a thread and closes it when it was idle for `keep` after a response, or at once.
fn closing_origin(keep: Option<Duration>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&served);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let counter = Arc::clone(&counter);
            std::thread::spawn(move || {
                stream.set_nodelay(true).unwrap();
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    assert!(buffer[..n].ends_with(b"\r\n\r\n") || buffer[..n].ends_with(b"body"));
                    counter.fetch_add(1, Ordering::Relaxed);
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
                    if keep.is_none() {
                        break;
                    }
                    stream.set_read_timeout(keep).unwrap();
                }
            });
        }
    });
    (addr, served)
}

/// Sends `total` requests from `tasks` tasks, each waiting `pause(i)` before its next.
async fn drive(
    addr: SocketAddr,
    total: usize,
    tasks: usize,
    make: fn(usize) -> http::Request<TestBody>,
    pause: fn(usize) -> Duration,
) -> usize {
    let (pools, cluster) = (Pools::new(), cluster(addr));
    let reused = Rc::new(Cell::new(0));
    let all = (0..tasks).map(|task| {
        let (pools, cluster, reused) = (pools.clone(), Arc::clone(&cluster), Rc::clone(&reused));
        tokio::task::spawn_local(async move {
            for i in (task..total).step_by(tasks) {
                let sent =
                    send(&pools, &cluster, make(i)).await.unwrap_or_else(|e| panic!("{i}: {e} ({e:?})"));
                reused.set(reused.get() + usize::from(sent.attempts.last().unwrap().reused));
                assert_eq!(text(sent).await, "ok");
                match pause(i) {
                    Duration::ZERO => {}
                    pause => tokio::time::sleep(pause).await,
                }
            }
        })
    });
    for task in all.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    reused.get()
}

#[test]
fn five_thousand_gets_see_nothing_of_an_origin_that_closes_after_each_response() {
    on_a_worker(async {
        let (addr, served) = closing_origin(None);
        drive(addr, 5000, 8, |_| get("/"), |_| Duration::ZERO).await;
        assert_eq!(served.load(Ordering::Relaxed), 5000);
    });
}

#[test]
fn posts_see_nothing_of_an_origin_that_closes_after_each_response_and_arrive_once() {
    on_a_worker(async {
        let (addr, served) = closing_origin(None);
        let reused = drive(addr, 2000, 8, |_| post("/", "body"), |_| Duration::ZERO).await;
        assert_eq!((served.load(Ordering::Relaxed), reused), (2000, 0));
    });
}

#[test]
fn five_thousand_gets_see_nothing_of_an_origin_that_closes_idle_connections() {
    on_a_worker(async {
        let (addr, _) = closing_origin(Some(Duration::from_millis(3)));
        // Pauses around the origin's limit, so that closes and requests meet.
        let reused =
            drive(addr, 5000, 16, |_| get("/"), |i| Duration::from_millis([0, 1, 2, 3, 3, 3, 4, 5][i % 8]))
                .await;
        assert!(reused > 100, "the race is on: {reused}");
    });
}

#[test]
fn posts_keep_their_distance_from_the_moment_in_which_an_origin_closes_idle_connections() {
    on_a_worker(async {
        let (addr, served) = closing_origin(Some(Duration::from_millis(120)));
        let pause = |i: usize| {
            Duration::from_millis([0, 0, 0, 0, 0, 0, 0, 110, 118, 119, 120, 121, 122, 130][i % 14])
        };
        // GETs among them: what one learns of the endpoint the other heeds.
        let make = |i: usize| if i.is_multiple_of(5) { get("/") } else { post("/", "body") };
        let reused = drive(addr, 480, 16, make, pause).await;
        assert!(served.load(Ordering::Relaxed) >= 480);
        assert!(reused > 100, "{reused}");
    });
}

#[test]
fn an_announced_idle_limit_is_heeded_by_requests_that_cannot_be_repeated() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            while read_request(&mut stream).await?.is_some() {
                respond(&mut stream, "200 OK", "keep-alive: timeout=0, max=100\r\n", b"ok").await?;
            }
            Ok(())
        })
        .await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        for _ in 0..3 {
            send(&pools, &cluster, get("/")).await.unwrap();
        }
        assert_eq!(origin.connections.get(), 1, "a GET can be sent again");
        let sent = send(&pools, &cluster, post("/", "body")).await.unwrap();
        assert!(!sent.attempts[0].reused, "a POST cannot");
    });
}

#[test]
fn an_end_that_only_the_kernel_knows_of_is_noticed_before_a_post_goes_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (end, wait) = std::sync::mpsc::channel::<()>();
    let (ended, seen_end) = std::sync::mpsc::channel();
    let origin = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let mut serve = |stream: &mut std::net::TcpStream| {
            let n = stream.read(&mut buffer).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        };
        let (mut first, _) = listener.accept().unwrap();
        serve(&mut first);
        serve(&mut first);
        wait.recv().unwrap();
        drop(first);
        ended.send(()).unwrap();
        let (mut second, _) = listener.accept().unwrap();
        serve(&mut second)
    });
    on_a_worker(async {
        let (pools, cluster) = (Pools::new(), cluster(addr));
        for _ in 0..2 {
            send(&pools, &cluster, get("/")).await.unwrap();
        }
        end.send(()).unwrap();
        // Blocks this whole thread: the runtime hears nothing of the end.
        seen_end.recv().unwrap();
        assert_eq!(pools.idle(), 1);
        let sent = send(&pools, &cluster, post("/", "body")).await.unwrap();
        assert_eq!((sent.attempts.len(), sent.attempts[0].reused), (1, false), "not even an attempt");
    });
    assert!(origin.join().unwrap().ends_with("body"));
}

/// An origin that answers the first request of a connection and breaks the connection at the second, having read it.
async fn breaks_at_the_second() -> (Origin, Rc<RefCell<Vec<String>>>) {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&seen);
    let origin = Origin::new(move |mut stream, _| {
        let log = Rc::clone(&log);
        async move {
            for i in 0..2 {
                let Some(request) = read_request(&mut stream).await? else { break };
                log.borrow_mut().push(request.head);
                if i == 0 {
                    respond(&mut stream, "200 OK", "", b"ok").await?;
                }
            }
            Ok(())
        }
    })
    .await;
    (origin, seen)
}

#[test]
fn a_request_that_may_be_repeated_is_sent_once_more_on_a_new_connection() {
    on_a_worker(async {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE] {
            let (origin, seen) = breaks_at_the_second().await;
            let (pools, cluster) = (Pools::new(), cluster(origin.addr));
            send(&pools, &cluster, get("/")).await.unwrap();
            let mut again = request(method, "/again?a=b", TestBody::empty());
            again.headers_mut().append("x-many", "1".parse().unwrap());
            again.headers_mut().append("x-many", "two words".parse().unwrap());
            let sent = send(&pools, &cluster, again).await.unwrap();
            assert_eq!(sent.attempts.len(), 2, "{:?}", sent.attempts);
            assert_eq!(
                (sent.attempts[0].reused, sent.attempts[0].error.clone()),
                (true, Some(ErrorKind::Reset))
            );
            assert_eq!((sent.attempts[1].reused, sent.attempts[1].status.unwrap().as_u16()), (false, 200));
            let seen = seen.borrow();
            assert_eq!(seen[1], seen[2], "the same to the last byte");
        }
    });
}

#[test]
fn a_request_that_may_not_be_repeated_is_given_back_instead() {
    on_a_worker(async {
        let (origin, seen) = breaks_at_the_second().await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        send(&pools, &cluster, get("/")).await.unwrap();
        // Long enough for an unproven endpoint's connection to be taken.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let error = send(&pools, &cluster, request(Method::POST, "/x", TestBody::empty())).await.unwrap_err();
        assert_eq!((&error.kind, error.sent), (&ErrorKind::Reset, Sentness::Maybe));
        assert!(error.attempts[0].reused);
        assert_eq!(error.request.unwrap().uri(), "/x", "whole, for a caller that knows better");
        assert_eq!(seen.borrow().len(), 2);
    });
}

#[test]
fn a_new_connection_that_breaks_is_not_tried_again() {
    on_a_worker(async {
        let origin =
            Origin::new(|mut stream, _| async move { read_head(&mut stream).await.map(|_| ()) }).await;
        let error = send(&Pools::new(), &cluster(origin.addr), get("/")).await.unwrap_err();
        assert_eq!(
            (&error.kind, error.sent, origin.connections.get()),
            (&ErrorKind::Reset, Sentness::Maybe, 1)
        );
        assert!(error.request.is_some());
    });
}

#[test]
fn a_connection_returns_only_when_the_response_body_has_ended() {
    on_a_worker(async {
        const LENGTH: usize = 4 << 20;
        let origin = Origin::new(|mut stream, _| async move {
            while read_request(&mut stream).await?.is_some() {
                respond(&mut stream, "200 OK", "", &vec![b'x'; LENGTH]).await?;
            }
            Ok(())
        })
        .await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        let mut response = send(&pools, &cluster, get("/")).await.unwrap().response;
        response.body_mut().frame().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(pools.idle(), 0, "the rest is still to be read");
        let rest = whole(response).await.0.len();
        assert!(rest < LENGTH && rest > LENGTH / 2);
        until("the connection is back", || pools.idle() == 1).await;
        send(&pools, &cluster, get("/")).await.unwrap();
        assert_eq!(origin.connections.get(), 1);
    });
}

#[test]
fn a_connection_returns_only_when_the_request_body_is_done_though_the_response_came_early() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            while let Some(head) = read_head(&mut stream).await? {
                respond(&mut stream, "200 OK", "", b"early").await?;
                if head.starts_with("POST") {
                    stream.read_exact(&mut [0; 10]).await?;
                }
            }
            Ok(())
        })
        .await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        let (body_tx, body) = TestBody::channel(Some(10));
        body_tx.send(Ok(Frame::data(Bytes::from_static(b"01234")))).await.unwrap();
        let sent = send(&pools, &cluster, request(Method::POST, "/", body)).await.unwrap();
        assert_eq!(text(sent).await, "early");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(pools.idle(), 0, "half of the request is still to come");
        send(&pools, &cluster, get("/")).await.unwrap();
        assert_eq!(
            (origin.connections.get(), pools.idle()),
            (2, 1),
            "so the next one takes another connection"
        );

        body_tx.send(Ok(Frame::data(Bytes::from_static(b"56789")))).await.unwrap();
        until("the first connection is back", || pools.idle() == 2).await;
    });
}

#[test]
fn a_response_body_that_is_dropped_closes_its_connection() {
    on_a_worker(async {
        let closed = Rc::new(Cell::new(false));
        let flag = Rc::clone(&closed);
        let origin = Origin::new(move |mut stream, _| {
            let flag = Rc::clone(&flag);
            async move {
                read_head(&mut stream).await?;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegin").await?;
                flag.set(stream.read(&mut [0]).await.unwrap_or(0) == 0);
                Ok(())
            }
        })
        .await;
        let pools = Pools::new();
        drop(send(&pools, &cluster(origin.addr), get("/")).await.unwrap());
        until("the origin sees the end", || closed.get()).await;
        assert_eq!(pools.idle(), 0);
    });
}

#[test]
fn a_request_that_is_dropped_closes_its_connection() {
    on_a_worker(async {
        let (asked, closed) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let flags = (Rc::clone(&asked), Rc::clone(&closed));
        let origin = Origin::new(move |mut stream, _| {
            let (asked, closed) = flags.clone();
            async move {
                read_head(&mut stream).await?;
                asked.set(true);
                closed.set(stream.read(&mut [0]).await.unwrap_or(0) == 0);
                Ok(())
            }
        })
        .await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        let task = tokio::task::spawn_local({
            let (pools, cluster) = (pools.clone(), Arc::clone(&cluster));
            async move { send(&pools, &cluster, get("/")).await.map(drop) }
        });
        until("the origin was asked", || asked.get()).await;
        task.abort();
        until("the origin sees the end", || closed.get()).await;
        assert_eq!(pools.idle(), 0);
    });
}

#[test]
fn connection_close_is_heeded() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            read_head(&mut stream).await?;
            respond(&mut stream, "200 OK", "connection: close\r\n", b"ok").await?;
            // Open for longer than the test asks.
            stream.read(&mut [0]).await.map(|_| ())
        })
        .await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        for n in 1..4 {
            let sent = send(&pools, &cluster, get("/")).await.unwrap();
            assert_eq!(text(sent).await, "ok");
            assert_eq!((pools.idle(), origin.connections.get()), (0, n));
        }
    });
}

#[test]
fn stray_bytes_on_a_kept_connection_are_no_answer_to_the_next_request() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, number| async move {
            while read_request(&mut stream).await?.is_some() {
                respond(&mut stream, "200 OK", "", format!("{number}").as_bytes()).await?;
                respond(&mut stream, "200 OK", "", b"stray").await?;
            }
            Ok(())
        })
        .await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        for n in 0..5 {
            assert_eq!(text(send(&pools, &cluster, get("/")).await.unwrap()).await, n.to_string());
            assert_eq!(pools.idle(), 0);
        }
    });
}

#[test]
fn chunks_go_only_to_origins_known_to_read_them_or_to_new_connections() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, number| async move {
            while let Some(head) = read_head(&mut stream).await? {
                if head.contains("transfer-encoding: chunked") {
                    stream.read_exact(&mut [0; "4\r\nbody\r\n0\r\n\r\n".len()]).await?;
                }
                let answer =
                    format!("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\n{number}");
                stream.write_all(answer.as_bytes()).await?;
            }
            Ok(())
        })
        .await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        for _ in 0..2 {
            assert_eq!(text(send(&pools, &cluster, get("/")).await.unwrap()).await, "0");
        }
        let body = TestBody::frames([Frame::data(Bytes::from_static(b"body"))]);
        let sent = send(&pools, &cluster, request(Method::POST, "/", body)).await.unwrap();
        assert!(!sent.attempts[0].reused, "hyper would send no body on a connection of HTTP/1.0");
        assert_eq!(text(sent).await, "1");
    });
}

#[test]
fn idle_connections_are_bounded() {
    on_a_worker(async {
        let origin = Origin::echo().await;
        let settings = PoolSettings { idle_per_endpoint: 2, ..PoolSettings::default() };
        let (pools, cluster) = (Pools::with_settings(settings), cluster(origin.addr));
        let all = (0..5).map(|_| {
            let (pools, cluster) = (pools.clone(), Arc::clone(&cluster));
            tokio::task::spawn_local(
                async move { text(send(&pools, &cluster, get("/")).await.unwrap()).await },
            )
        });
        for task in all.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        assert_eq!((origin.connections.get(), pools.idle()), (5, 2));
    });
}

#[test]
fn idle_connections_are_closed_after_their_time() {
    on_a_worker(async {
        let origin = Origin::echo().await;
        let settings = PoolSettings { idle_timeout: Duration::from_millis(40), ..PoolSettings::default() };
        let (pools, cluster) = (Pools::with_settings(settings), cluster(origin.addr));
        for _ in 0..2 {
            text(send(&pools, &cluster, get("/")).await.unwrap()).await;
            assert_eq!(pools.idle(), 1);
            until("it is closed", || pools.idle() == 0).await;
        }
        assert_eq!(origin.connections.get(), 2);
    });
}

#[test]
fn a_cluster_that_is_gone_takes_its_connections_with_it() {
    on_a_worker(async {
        let origin = Origin::echo().await;
        let settings = PoolSettings { idle_timeout: Duration::from_millis(400), ..PoolSettings::default() };
        let pools = Pools::with_settings(settings);
        let gone = cluster(origin.addr);
        text(send(&pools, &gone, get("/")).await.unwrap()).await;
        drop(gone);
        until("they are closed", || pools.idle() == 0).await;
    });
}

#[test]
fn close_idle_closes_all_that_are_idle_and_none_that_is_in_use() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, number| async move {
            while read_request(&mut stream).await?.is_some() {
                if number == 1 {
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
                respond(&mut stream, "200 OK", "", b"ok").await?;
            }
            Ok(())
        })
        .await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        let (first, second) = tokio::join!(
            async {
                send(&pools, &cluster, get("/")).await.unwrap();
                assert_eq!(pools.idle(), 1);
                pools.close_idle();
                assert_eq!(pools.idle(), 0);
            },
            pools.send(&cluster, get("/"), SendOptions::default())
        );
        let ((), sent) = (first, second.unwrap());
        assert_eq!(text(sent).await, "ok");
        assert_eq!(pools.idle(), 1);
    });
}

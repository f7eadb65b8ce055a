//! Bodies in both directions: streamed with back-pressure, trailers and all, and never passed off as whole.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod common;

use std::{cell::Cell, rc::Rc, time::Duration};

use beamline_upstream::{ErrorKind, Pools, Sentness};
use bytes::Bytes;
use common::*;
use http::{HeaderMap, HeaderValue, Method};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHUNK: usize = 64 * 1024;

/// More than the kernel's and hyper's buffers take together.
const MUCH: usize = 64 << 20;

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("x-checksum"), HeaderValue::from_static("abc"))])
}

#[test]
fn a_response_is_read_only_as_fast_as_its_reader_takes_it() {
    on_a_worker(async {
        let written = Rc::new(Cell::new(0));
        let counter = Rc::clone(&written);
        let origin = Origin::new(move |mut stream, _| {
            let counter = Rc::clone(&counter);
            async move {
                read_head(&mut stream).await?;
                stream
                    .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {MUCH}\r\n\r\n").as_bytes())
                    .await?;
                let chunk = vec![b'x'; CHUNK];
                for _ in 0..MUCH / CHUNK {
                    stream.write_all(&chunk).await?;
                    counter.set(counter.get() + CHUNK);
                }
                Ok(())
            }
        })
        .await;
        let mut body =
            send(&Pools::new(), &cluster(origin.addr), get("/")).await.unwrap().response.into_body();
        let mut read = body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        settled(&written).await;
        assert!(written.get() < MUCH, "nobody read, yet all {MUCH} bytes were taken");
        while let Some(frame) = body.frame().await {
            read += frame.unwrap().into_data().unwrap().len();
        }
        assert_eq!(read, MUCH);
    });
}

#[test]
fn a_request_is_taken_only_as_fast_as_the_origin_reads_it() {
    on_a_worker(async {
        let go = Rc::new(tokio::sync::Notify::new());
        let wait = Rc::clone(&go);
        let origin = Origin::new(move |mut stream, _| {
            let wait = Rc::clone(&wait);
            async move {
                read_head(&mut stream).await?;
                wait.notified().await;
                let (mut read, mut buffer) = (0, vec![0; CHUNK]);
                while read < MUCH {
                    read += stream.read(&mut buffer).await?;
                }
                respond(&mut stream, "200 OK", "", read.to_string().as_bytes()).await
            }
        })
        .await;
        let taken = Rc::new(Cell::new(0));
        let (body_tx, body) = TestBody::channel(Some(MUCH as u64));
        let feeder = tokio::task::spawn_local({
            let taken = Rc::clone(&taken);
            async move {
                let chunk = Bytes::from(vec![b'x'; CHUNK]);
                for _ in 0..MUCH / CHUNK {
                    body_tx.send(Ok(Frame::data(chunk.clone()))).await.unwrap();
                    taken.set(taken.get() + CHUNK);
                }
            }
        });
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        let sending = tokio::task::spawn_local(async move {
            text(send(&pools, &cluster, request(Method::PUT, "/", body)).await.unwrap()).await
        });
        settled(&taken).await;
        assert!(taken.get() < MUCH, "the origin read nothing, yet all was taken");
        go.notify_one();
        assert_eq!(sending.await.unwrap(), MUCH.to_string());
        feeder.await.unwrap();
    });
}

#[test]
fn trailers_pass_in_both_directions() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            let head = read_head(&mut stream).await?.unwrap();
            assert!(head.contains("transfer-encoding: chunked"), "{head}");
            let mut sent = Vec::new();
            while !sent.ends_with(b"0\r\nx-checksum: abc\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut sent).await?, 0, "{sent:?}");
            }
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-checksum\r\n\r\n\
                4\r\nsome\r\n0\r\nx-checksum: abc\r\n\r\n";
            stream.write_all(answer.as_bytes()).await
        })
        .await;
        let body = TestBody::frames([Frame::data(Bytes::from_static(b"body")), Frame::trailers(trailers())]);
        let mut request = request(Method::POST, "/", body);
        request.headers_mut().insert("trailer", HeaderValue::from_static("x-checksum"));
        let sent = send(&Pools::new(), &cluster(origin.addr), request).await.unwrap();
        assert_eq!(whole(sent.response).await, (Bytes::from_static(b"some"), Some(trailers())));
    });
}

#[test]
fn head_and_small_body_arrive_in_one_piece() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            let mut buffer = vec![0; 4096];
            let first = stream.read(&mut buffer).await?;
            let first = String::from_utf8_lossy(&buffer[..first]).into_owned();
            assert!(first.contains("content-length: 4\r\n"), "{first}");
            respond(&mut stream, "200 OK", "", &first.as_bytes()[first.len() - 4..]).await
        })
        .await;
        let sent = send(&Pools::new(), &cluster(origin.addr), post("/", "body")).await.unwrap();
        let body = sent.response.into_body();
        assert_eq!(body.size_hint().exact(), Some(4), "so that the server's side can do the same");
        assert_eq!(body.collect().await.unwrap().to_bytes(), "body");
    });
}

#[test]
fn a_response_without_a_body_says_so_at_once() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            while let Some(request) = read_request(&mut stream).await? {
                let answer: &[u8] = match request.head.split(' ').next() {
                    Some("HEAD") => b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
                    Some("GET") => b"HTTP/1.1 304 Not Modified\r\n\r\n",
                    _ => b"HTTP/1.1 204 No Content\r\n\r\n",
                };
                stream.write_all(answer).await?;
            }
            Ok(())
        })
        .await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        for method in [Method::HEAD, Method::GET, Method::DELETE] {
            let sent = send(&pools, &cluster, request(method, "/", TestBody::empty())).await.unwrap();
            assert!(sent.response.body().is_end_stream());
        }
        assert_eq!(origin.connections.get(), 1);
    });
}

#[test]
fn a_get_keeps_a_body_of_unknown_length() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            let head = read_head(&mut stream).await?.unwrap();
            assert!(head.contains("transfer-encoding: chunked"), "{head}");
            let mut body = [0; "5\r\nquery\r\n0\r\n\r\n".len()];
            stream.read_exact(&mut body).await?;
            respond(&mut stream, "200 OK", "", &body[3..8]).await
        })
        .await;
        let body = TestBody::frames([Frame::data(Bytes::from_static(b"query"))]);
        let sent = send(&Pools::new(), &cluster(origin.addr), request(Method::GET, "/", body)).await.unwrap();
        assert_eq!(text(sent).await, "query");
    });
}

#[test]
fn an_early_answer_is_heard_though_the_origin_closes_on_the_request_body() {
    on_a_worker(async {
        // More than hyper reads at once, no more than is in our kernel's hands when the origin's sends the reset.
        const ANSWER: usize = 48 * 1024;
        let origin = Origin::new(|mut stream, _| async move {
            read_head(&mut stream).await?;
            // Unread bytes at the close: the kernel answers what follows with a reset.
            respond(&mut stream, "413 Content Too Large", "connection: close\r\n", &vec![b'x'; ANSWER]).await
        })
        .await;
        for _ in 0..20 {
            let (body_tx, body) = TestBody::channel(Some(MUCH as u64));
            let feeder = tokio::task::spawn_local(async move {
                let chunk = Bytes::from(vec![b'x'; CHUNK]);
                while body_tx.send(Ok(Frame::data(chunk.clone()))).await.is_ok() {}
            });
            let sent =
                send(&Pools::new(), &cluster(origin.addr), request(Method::POST, "/", body)).await.unwrap();
            assert_eq!(sent.response.status(), 413);
            assert_eq!(whole(sent.response).await.0.len(), ANSWER);
            feeder.await.unwrap();
        }
    });
}

#[test]
fn a_response_body_that_breaks_is_an_error_and_never_an_end() {
    on_a_worker(async {
        for (broken, readable) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "half"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", "half"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n6\r\nth", "halfth"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n", "half"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nx-trailer", "half"),
        ] {
            let origin = Origin::new(move |mut stream, _| async move {
                read_head(&mut stream).await?;
                stream.write_all(broken.as_bytes()).await
            })
            .await;
            let pools = Pools::new();
            let mut body = send(&pools, &cluster(origin.addr), get("/")).await.unwrap().response.into_body();
            let mut read = Vec::new();
            let error = loop {
                match body.frame().await {
                    Some(Ok(frame)) => read.extend_from_slice(frame.data_ref().unwrap()),
                    Some(Err(error)) => break error.to_string(),
                    None => panic!("{broken:?} was passed off as whole"),
                }
            };
            assert_eq!(String::from_utf8(read).unwrap(), readable);
            assert!(error.contains(&origin.addr.to_string()), "{error}");
            assert_eq!(pools.idle(), 0);
        }
    });
}

#[test]
fn a_body_that_ends_with_its_connection_is_whole() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            read_head(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await
        })
        .await;
        let sent = send(&Pools::new(), &cluster(origin.addr), get("/")).await.unwrap();
        assert_eq!(text(sent).await, "until the end");
    });
}

#[test]
fn a_client_that_goes_away_fails_its_request_and_not_the_upstream() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            read_head(&mut stream).await?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await?;
            assert_eq!(rest, b"half", "what the origin gets is not whole, and it can see that");
            Ok(())
        })
        .await;
        let cluster = cluster(origin.addr);
        for _ in 0..10 {
            let (body_tx, body) = TestBody::channel(Some(10));
            body_tx.send(Ok(Frame::data(Bytes::from_static(b"half")))).await.unwrap();
            tokio::task::spawn_local(async move { body_tx.send(Err("went away".into())).await.unwrap() });
            let error = send(&Pools::new(), &cluster, request(Method::POST, "/", body)).await.unwrap_err();
            assert_eq!((&error.kind, error.sent), (&ErrorKind::RequestBody, Sentness::Maybe));
            assert!(error.request.is_none());
        }
        assert_eq!(cluster.state(), beamline_upstream::UpstreamState::Ready);
    });
}

#[test]
fn a_body_shorter_than_it_said_is_the_requests_fault() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            read_head(&mut stream).await?;
            stream.read_to_end(&mut Vec::new()).await.map(|_| ())
        })
        .await;
        let (body_tx, body) = TestBody::channel(Some(10));
        body_tx.send(Ok(Frame::data(Bytes::from_static(b"half")))).await.unwrap();
        drop(body_tx);
        let error =
            send(&Pools::new(), &cluster(origin.addr), request(Method::POST, "/", body)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::RequestBody);
    });
}

#[test]
fn a_length_without_a_body_is_not_sent() {
    on_a_worker(async {
        let origin = Origin::echo().await;
        let (pools, cluster) = (Pools::new(), cluster(origin.addr));
        let mut lying = request(Method::POST, "/", TestBody::empty());
        lying.headers_mut().insert("content-length", HeaderValue::from_static("5"));
        let error = send(&pools, &cluster, lying).await.unwrap_err();
        assert_eq!((&error.kind, error.sent), (&ErrorKind::RequestBody, Sentness::Nothing));
        let mut request = error.request.unwrap();
        request.headers_mut().insert("content-length", HeaderValue::from_static("0"));
        assert_eq!(text(send(&pools, &cluster, request).await.unwrap()).await, "POST / HTTP/1.1");
    });
}

#[test]
fn the_upstream_is_spoken_to_in_http_1_1_whatever_the_client_speaks() {
    on_a_worker(async {
        let origin = Origin::echo().await;
        let mut request = get("/");
        *request.version_mut() = http::Version::HTTP_10;
        let sent = send(&Pools::new(), &cluster(origin.addr), request).await.unwrap();
        assert_eq!(text(sent).await, "GET / HTTP/1.1");
    });
}

#[test]
fn what_is_left_of_a_begun_body_comes_back_with_the_head() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            read_head(&mut stream).await?;
            stream.read_exact(&mut [0; 5]).await.map(|_| ())
        })
        .await;
        let (body_tx, body) = TestBody::channel(Some(10));
        body_tx.send(Ok(Frame::data(Bytes::from_static(b"01234")))).await.unwrap();
        let mut put = request(Method::PUT, "/path?query", body);
        put.headers_mut().insert("x-field", HeaderValue::from_static("value"));
        put.extensions_mut().insert(7_u8);
        let error = send(&Pools::new(), &cluster(origin.addr), put).await.unwrap_err();
        assert_eq!((&error.kind, error.sent), (&ErrorKind::Reset, Sentness::Maybe));
        assert!(error.request.is_none(), "it is not whole");

        let (parts, mut body) = error.begun.unwrap().into_parts();
        assert_eq!((parts.method, parts.uri.to_string()), (Method::PUT, "/path?query".to_owned()));
        assert_eq!(parts.headers["x-field"], "value");
        assert_eq!(parts.extensions.get::<u8>(), Some(&7));
        body_tx.send(Ok(Frame::data(Bytes::from_static(b"56789")))).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "56789");
    });
}

/// Waits until `count` has grown and then stood still for a while.
async fn settled(count: &Cell<usize>) {
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = count.get();
        if now > 0 && now == last {
            return;
        }
        last = now;
    }
}

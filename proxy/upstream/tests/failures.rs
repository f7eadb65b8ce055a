//! Failures before a response head: named rightly, and never wrong about whether a byte left.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod common;

use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use beamline_model::{Endpoint, Grant, GrantRefusal, NatsTarget, UpstreamTarget};
use beamline_upstream::{
    AddressPolicy, Clock, Cluster, ClusterSettings, ErrorKind, Pools, SendOptions, Sentness, UpstreamState,
};
use bytes::Bytes;
use common::*;
use http::Method;
use http_body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SHORT: beamline_model::Duration = beamline_model::Duration::millis(60);

#[test]
fn a_refused_connection_sends_nothing_and_gives_the_request_back() {
    on_a_worker(async {
        let dead = dead_address().await;
        let error = send(&Pools::new(), &cluster(dead), post("/x", "body")).await.unwrap_err();
        assert_eq!((&error.kind, error.sent), (&ErrorKind::ConnectRefused, Sentness::Nothing));
        assert_eq!((error.attempts.len(), error.attempts[0].peer), (1, Some(dead)));
        assert_eq!(
            error.to_string(),
            format!(
                "upstream acme/api at {dead}: the connection was refused: check that the origin runs and listens on \
                 the endpoint's port"
            )
        );
        // It can be sent elsewhere as it is.
        let origin = Origin::echo().await;
        let sent = send(&Pools::new(), &cluster(origin.addr), error.request.unwrap()).await.unwrap();
        assert_eq!(text(sent).await, "POST /x HTTP/1.1body");
    });
}

/// A listener that accepts nothing and whose backlog is full: what connects waits.
fn full_backlog() -> (std::net::TcpListener, Vec<TcpStream>, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, Vec::new(), addr)
}

#[test]
fn a_connection_that_does_not_stand_in_time_is_a_connect_timeout() {
    on_a_worker(async {
        let (_listener, mut held, addr) = full_backlog();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(50), TcpStream::connect(addr)).await
        {
            held.push(connected.unwrap());
        }
        let mut spec = spec([Endpoint::Address(addr)]);
        spec.connect_timeout = SHORT;
        let cluster = cluster_with(&spec, ClusterSettings::default());
        let error = send(&Pools::new(), &cluster, get("/")).await.unwrap_err();
        assert_eq!((&error.kind, error.sent), (&ErrorKind::ConnectTimeout, Sentness::Nothing));
        assert!(error.attempts[0].duration >= SHORT.get());
        assert!(error.request.is_some());
    });
}

/// Reads the request, says nothing.
async fn silent() -> Origin {
    Origin::new(|mut stream, _| async move {
        read_request(&mut stream).await?;
        stream.read(&mut [0]).await.map(|_| ())
    })
    .await
}

#[test]
fn a_response_that_does_not_begin_in_time_is_a_response_timeout() {
    on_a_worker(async {
        let origin = silent().await;
        let mut spec = spec([Endpoint::Address(origin.addr)]);
        spec.response_timeout = SHORT;
        let (pools, cluster) = (Pools::new(), cluster_with(&spec, ClusterSettings::default()));
        let error = send(&pools, &cluster, get("/x")).await.unwrap_err();
        assert_eq!((&error.kind, error.sent), (&ErrorKind::ResponseTimeout, Sentness::Maybe));
        let took = error.attempts[0].duration;
        assert!(took >= SHORT.get() && took < 10 * SHORT.get(), "{took:?}");
        assert_eq!(error.request.unwrap().uri(), "/x");
        assert_eq!(error.attempts.len(), 1, "not tried again");
        tokio::task::yield_now().await;
        assert_eq!(pools.idle(), 0);
    });
}

#[test]
fn a_callers_time_out_shortens_the_upstreams_and_never_prolongs_it() {
    on_a_worker(async {
        let origin = silent().await;
        let mut spec = spec([Endpoint::Address(origin.addr)]);
        for (own, asked) in [(Duration::from_secs(20), SHORT.get()), (SHORT.get(), Duration::from_secs(20))] {
            spec.response_timeout = beamline_model::Duration::millis(own.as_millis() as u64);
            let cluster = cluster_with(&spec, ClusterSettings::default());
            let options = SendOptions { response_timeout: Some(asked), ..SendOptions::default() };
            let error = Pools::new().send(&cluster, get("/"), options).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::ResponseTimeout);
            assert!(error.attempts[0].duration < 10 * SHORT.get());
        }
    });
}

#[test]
fn the_response_time_out_counts_from_the_end_of_the_request_body() {
    on_a_worker(async {
        let mut spec = spec([]);
        spec.response_timeout = beamline_model::Duration::millis(150);
        for answers in [true, false] {
            let origin = Origin::new(move |mut stream, _| async move {
                read_request(&mut stream).await?;
                if answers {
                    respond(&mut stream, "200 OK", "", b"ok").await
                } else {
                    stream.read(&mut [0]).await.map(drop)
                }
            })
            .await;
            spec.target = UpstreamTarget::Http(vec![Endpoint::Address(origin.addr)]);
            let cluster = cluster_with(&spec, ClusterSettings::default());
            let (body_tx, body) = TestBody::channel(Some(8));
            tokio::task::spawn_local(async move {
                for _ in 0..8 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    body_tx.send(Ok(Frame::data(Bytes::from_static(b"x")))).await.unwrap();
                }
            });
            let pools = Pools::new();
            let outcome = send(&pools, &cluster, request(Method::POST, "/", body)).await;
            if answers {
                assert_eq!(text(outcome.unwrap()).await, "ok", "a slow client is no slow upstream");
            } else {
                let error = outcome.unwrap_err();
                assert_eq!(error.kind, ErrorKind::ResponseTimeout);
                let took = error.attempts[0].duration.as_millis();
                assert!((550..1500).contains(&took), "8 × 50 ms of body, then 150 ms: {took}");
            }
        }
    });
}

#[test]
fn an_upstream_that_stops_taking_the_request_body_times_out_too() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            read_head(&mut stream).await?;
            std::future::pending().await
        })
        .await;
        let mut spec = spec([Endpoint::Address(origin.addr)]);
        spec.response_timeout = SHORT;
        let cluster = cluster_with(&spec, ClusterSettings::default());
        let (body_tx, body) = TestBody::channel(None);
        let feeder = tokio::task::spawn_local(async move {
            let chunk = Bytes::from(vec![0; 64 * 1024]);
            while body_tx.send(Ok(Frame::data(chunk.clone()))).await.is_ok() {}
        });
        let error = send(&Pools::new(), &cluster, request(Method::POST, "/", body)).await.unwrap_err();
        assert_eq!((&error.kind, error.sent), (&ErrorKind::ResponseTimeout, Sentness::Maybe));
        drop(error);
        feeder.await.unwrap();
    });
}

#[test]
fn what_is_no_response_is_a_bad_response_and_the_upstream_counts_as_there() {
    on_a_worker(async {
        for answer in [
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nbad name: 1\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        ] {
            let origin = Origin::new(move |mut stream, _| async move {
                read_head(&mut stream).await?;
                stream.write_all(answer.as_bytes()).await?;
                stream.read(&mut [0]).await.map(drop)
            })
            .await;
            let cluster = cluster(origin.addr);
            for _ in 0..6 {
                let error = send(&Pools::new(), &cluster, get("/")).await.unwrap_err();
                assert_eq!(
                    (&error.kind, error.sent),
                    (&ErrorKind::BadResponse, Sentness::Maybe),
                    "{answer:?}"
                );
            }
            assert_eq!(cluster.state(), UpstreamState::Ready);
        }
    });
}

#[test]
fn informational_responses_are_waited_through() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            read_head(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await?;
            respond(&mut stream, "200 OK", "", b"ok").await
        })
        .await;
        assert_eq!(text(send(&Pools::new(), &cluster(origin.addr), get("/")).await.unwrap()).await, "ok");
    });
}

#[test]
fn half_a_response_head_is_a_reset() {
    on_a_worker(async {
        let origin = Origin::new(|mut stream, _| async move {
            read_head(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le").await
        })
        .await;
        let error = send(&Pools::new(), &cluster(origin.addr), get("/")).await.unwrap_err();
        assert_eq!((&error.kind, error.sent), (&ErrorKind::Reset, Sentness::Maybe));
    });
}

#[test]
fn a_request_that_broke_on_a_kept_connection_and_then_found_none_may_have_been_sent() {
    on_a_worker(async {
        let stop = Rc::new(tokio::sync::Notify::new());
        let stopped = Rc::clone(&stop);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            drop(listener);
            read_request(&mut stream).await.unwrap();
            respond(&mut stream, "200 OK", "", b"ok").await.unwrap();
            read_request(&mut stream).await.unwrap();
            stopped.notify_one();
        });
        let (pools, cluster) = (Pools::new(), cluster(addr));
        send(&pools, &cluster, get("/")).await.unwrap();
        let error = send(&pools, &cluster, get("/")).await.unwrap_err();
        stop.notified().await;
        assert_eq!((&error.kind, error.sent), (&ErrorKind::ConnectRefused, Sentness::Maybe));
        assert_eq!(error.attempts.len(), 2);
        assert!(error.request.is_some());
    });
}

/// Lets through what a grant for these addresses lets through, and counts the questions.
struct Granted(Grant, std::sync::atomic::AtomicUsize);

impl AddressPolicy for Granted {
    fn permits(&self, addr: SocketAddr) -> Result<(), GrantRefusal> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0.permits_address(addr, &[])
    }

    fn permits_subject(&self, target: &NatsTarget) -> Result<(), GrantRefusal> {
        self.0.permits_subject(target)
    }
}

fn granted(ranges: &[&str]) -> Arc<Granted> {
    let upstream_ranges = ranges.iter().map(|r| r.parse().unwrap()).collect();
    let grant = Grant { upstream_ranges, ..Grant::default() };
    Arc::new(Granted(grant, 0.into()))
}

#[test]
fn a_name_that_resolves_to_a_refused_address_is_denied_at_connect() {
    on_a_worker(async {
        let origin = Origin::echo().await;
        let named = Endpoint::Named("localhost".parse().unwrap(), origin.addr.port());
        let policy = granted(&["0.0.0.0/0", "::/0"]);
        let cluster = Cluster::new(key(), &spec([named.clone()]), Arc::clone(&policy) as _);
        for _ in 0..6 {
            let error = send(&Pools::new(), &cluster, post("/", "body")).await.unwrap_err();
            assert!(
                matches!(&error.kind, ErrorKind::Denied(GrantRefusal::Special(a)) if a.ip().is_loopback()),
                "{error}"
            );
            assert_eq!(error.sent, Sentness::Nothing);
            assert!(error.request.is_some() && error.attempts[0].peer.unwrap().ip().is_loopback());
        }
        assert_eq!(origin.connections.get(), 0);
        assert_eq!(cluster.state(), UpstreamState::Ready, "a refusal says nothing of the upstream's health");

        let policy = granted(&["127.0.0.0/8", "::1/128"]);
        let cluster = Cluster::new(key(), &spec([named]), Arc::clone(&policy) as _);
        let pools = Pools::new();
        for _ in 0..3 {
            send(&pools, &cluster, get("/")).await.unwrap();
        }
        let asked = policy.1.load(std::sync::atomic::Ordering::Relaxed);
        assert!((1..=2).contains(&asked), "asked per address at the one connect, {asked} times");
    });
}

#[test]
fn an_address_is_held_against_the_policy_too() {
    on_a_worker(async {
        let origin = Origin::echo().await;
        let policy = granted(&[]);
        let cluster = Cluster::new(key(), &spec([Endpoint::Address(origin.addr)]), policy);
        let error = send(&Pools::new(), &cluster, get("/")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied(GrantRefusal::Special(origin.addr)));
        assert_eq!(origin.connections.get(), 0);
    });
}

#[test]
fn a_name_that_does_not_resolve_is_a_dns_failure() {
    on_a_worker(async {
        let cluster = Cluster::new(
            key(),
            &spec([Endpoint::Named("no-such-host.invalid".parse().unwrap(), 80)]),
            Arc::new(Everywhere),
        );
        let error = send(&Pools::new(), &cluster, get("/")).await.unwrap_err();
        assert_eq!((&error.kind, error.sent), (&ErrorKind::Dns, Sentness::Nothing));
        assert_eq!(error.attempts[0].peer, None);
        assert!(error.request.is_some());
    });
}

#[test]
fn endpoints_take_turns() {
    on_a_worker(async {
        let (a, b, c) = (Origin::echo().await, Origin::echo().await, Origin::echo().await);
        let (pools, cluster) = (Pools::new(), cluster_of([a.addr, b.addr, c.addr]));
        let mut peers = Vec::new();
        for _ in 0..9 {
            peers.push(send(&pools, &cluster, get("/")).await.unwrap().attempts[0].peer.unwrap());
        }
        assert_eq!(peers, [a.addr, b.addr, c.addr].repeat(3));
        assert_eq!([&a, &b, &c].map(|o| o.connections.get()), [1, 1, 1]);
    });
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_and_tried_again_later() {
    on_a_worker(async {
        let (alive, dead) = (Origin::echo().await, dead_address().await);
        let clock = Clock::manual();
        let settings = ClusterSettings { clock: clock.clone(), random: || 250, ..ClusterSettings::default() };
        let cluster = cluster_with(&spec([dead, alive.addr].map(Endpoint::Address)), settings);
        let pools = Pools::new();
        let mut failed = Vec::new();
        for _ in 0..10 {
            let sent = send(&pools, &cluster, post("/", "body")).await.unwrap();
            failed.push(sent.attempts.len() - 1);
            assert_eq!(sent.attempts.last().unwrap().peer, Some(alive.addr));
        }
        assert_eq!(failed, [1, 0, 1, 0, 0, 0, 0, 0, 0, 0], "two failures, and it is left out");
        assert_eq!(cluster.state(), UpstreamState::Degraded);

        clock.advance(Duration::from_secs(1));
        let mut failed = 0;
        for _ in 0..4 {
            failed += send(&pools, &cluster, get("/")).await.unwrap().attempts.len() - 1;
        }
        assert_eq!(failed, 1, "one request looks after it, at no one's cost");
    });
}

#[test]
fn where_every_endpoint_refuses_the_last_failure_is_told() {
    on_a_worker(async {
        let dead = [dead_address().await, dead_address().await, dead_address().await, dead_address().await];
        let cluster = cluster_of(dead);
        for _ in 0..4 {
            let error = send(&Pools::new(), &cluster, post("/", "body")).await.unwrap_err();
            assert_eq!((&error.kind, error.sent), (&ErrorKind::ConnectRefused, Sentness::Nothing));
            assert_eq!(error.attempts.len(), 3, "a bound on how long one request looks");
            assert!(error.request.is_some());
        }
    });
}

#[test]
fn a_request_that_was_sent_is_not_sent_to_another_endpoint() {
    on_a_worker(async {
        let broken =
            Origin::new(|mut stream, _| async move { read_request(&mut stream).await.map(drop) }).await;
        let sound = Origin::echo().await;
        let cluster = cluster_of([broken.addr, sound.addr]);
        let error = send(&Pools::new(), &cluster, post("/", "body")).await.unwrap_err();
        assert_eq!((&error.kind, error.sent), (&ErrorKind::Reset, Sentness::Maybe));
        assert_eq!(sound.connections.get(), 0);
    });
}

#[test]
fn the_breaker_opens_probes_and_closes() {
    on_a_worker(async {
        let answers = Rc::new(Cell::new(false));
        let (flag, asked) = (Rc::clone(&answers), Rc::new(Cell::new(0)));
        let counter = Rc::clone(&asked);
        let origin = Origin::new(move |mut stream, _| {
            let (flag, counter) = (Rc::clone(&flag), Rc::clone(&counter));
            async move {
                while read_request(&mut stream).await?.is_some() {
                    counter.set(counter.get() + 1);
                    if !flag.get() {
                        break;
                    }
                    respond(&mut stream, "500 Internal Server Error", "", b"").await?;
                }
                Ok(())
            }
        })
        .await;
        let clock = Clock::manual();
        let settings = ClusterSettings { clock: clock.clone(), random: || 250, ..ClusterSettings::default() };
        let cluster = cluster_with(&spec([Endpoint::Address(origin.addr)]), settings);
        let pools = Pools::new();
        let kind = async || send(&pools, &cluster, post("/", "body")).await.map_err(|e| (e.kind, e.sent));

        assert_eq!(cluster.state(), UpstreamState::Ready);
        for _ in 0..5 {
            assert_eq!(kind().await.unwrap_err(), (ErrorKind::Reset, Sentness::Maybe));
        }
        assert_eq!((cluster.state(), cluster.retry_after()), (UpstreamState::Down, Duration::from_secs(1)));
        for _ in 0..3 {
            assert_eq!(kind().await.unwrap_err(), (ErrorKind::BreakerOpen, Sentness::Nothing));
        }
        assert_eq!(asked.get(), 5, "an open breaker sends nothing");

        clock.advance(Duration::from_secs(1));
        assert_eq!(cluster.state(), UpstreamState::Degraded, "due for a probe");
        assert_eq!(kind().await.unwrap_err().0, ErrorKind::Reset);
        assert_eq!((asked.get(), cluster.retry_after()), (6, Duration::from_secs(2)));
        assert_eq!(kind().await.unwrap_err().0, ErrorKind::BreakerOpen);

        answers.set(true);
        clock.advance(Duration::from_secs(2));
        assert_eq!(kind().await.unwrap().response.status(), 500, "an answer is an answer");
        assert_eq!(cluster.state(), UpstreamState::Ready);
        for _ in 0..10 {
            kind().await.unwrap();
        }
        assert_eq!(cluster.state(), UpstreamState::Ready, "no status opens a breaker");
    });
}

#[test]
fn while_one_request_probes_the_others_are_not_sent() {
    on_a_worker(async {
        let (dead, clock) = (dead_address().await, Clock::manual());
        let settings = ClusterSettings { clock: clock.clone(), random: || 250, ..ClusterSettings::default() };
        let cluster = cluster_with(&spec([Endpoint::Address(dead)]), settings);
        let pools = Pools::new();
        for _ in 0..5 {
            send(&pools, &cluster, get("/")).await.unwrap_err();
        }
        clock.advance(Duration::from_secs(1));

        let listener = tokio::net::TcpListener::bind(dead).await.unwrap();
        let probe = tokio::task::spawn_local({
            let (pools, cluster) = (pools.clone(), Arc::clone(&cluster));
            async move { send(&pools, &cluster, get("/probe")).await.map(drop) }
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await.unwrap();
        assert_eq!(send(&pools, &cluster, get("/")).await.unwrap_err().kind, ErrorKind::BreakerOpen);
        // The probe's client goes away: it decided nothing, and the next request probes.
        probe.abort();
        let _ = probe.await;
        let next = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await.unwrap();
            respond(&mut stream, "200 OK", "", b"ok").await.unwrap();
            stream
        };
        let (sent, _stream) = tokio::join!(send(&pools, &cluster, get("/")), next);
        assert_eq!(text(sent.unwrap()).await, "ok");
        assert_eq!(cluster.state(), UpstreamState::Ready);
    });
}

#[test]
fn a_caller_that_paces_itself_passes_an_open_breaker_and_closes_it() {
    on_a_worker(async {
        let addr = dead_address().await;
        let settings = ClusterSettings { clock: Clock::manual(), ..ClusterSettings::default() };
        let cluster = cluster_with(&spec([Endpoint::Address(addr)]), settings);
        let pools = Pools::new();
        let probing = SendOptions { probe: true, ..SendOptions::default() };
        for _ in 0..5 {
            send(&pools, &cluster, get("/")).await.unwrap_err();
        }
        let error = pools.send(&cluster, get("/"), probing).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::ConnectRefused);
        assert_eq!(cluster.state(), UpstreamState::Down);

        let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await.unwrap();
            respond(&mut stream, "200 OK", "", b"ok").await.unwrap();
        };
        let (sent, ()) = tokio::join!(pools.send(&cluster, get("/"), probing), serve);
        sent.unwrap();
        assert_eq!(cluster.state(), UpstreamState::Ready);
    });
}

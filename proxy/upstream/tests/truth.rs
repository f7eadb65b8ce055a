//! Seeded chaos: whatever an origin does to its connections, what is said of each request is true.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod common;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use beamline_upstream::{BreakerSettings, ClusterSettings, ErrorKind, Pools, Sentness};
use bytes::Bytes;
use common::*;
use http::Method;
use http_body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// SplitMix64: enough chance for a test, and the same from the same seed.
#[derive(Clone)]
struct Chance(Rc<Cell<u64>>);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(Rc::new(Cell::new(seed)))
    }

    fn below(&self, n: u64) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % n
    }
}

/// How often each request number was seen, if only the beginning of it.
type Seen = Rc<RefCell<HashMap<u64, usize>>>;

fn note(seen: &Seen, head: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(head);
    let number = text.split('/').nth(1)?.split('.').next()?.parse().ok()?;
    *seen.borrow_mut().entry(number).or_default() += 1;
    Some(number)
}

fn reset_at_close(stream: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

async fn misbehave(mut stream: TcpStream, chance: Chance, seen: Seen) -> io::Result<()> {
    if chance.below(4) == 0 {
        reset_at_close(&stream);
    }
    if chance.below(12) == 0 {
        return Ok(());
    }
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).await? == 0 {
                assert!(head.is_empty(), "a head that was begun and not finished");
                return Ok(());
            }
            head.push(byte[0]);
            if head.ends_with(b". HTTP/1.1\r\n") && chance.below(40) == 0 {
                note(&seen, &head);
                return Ok(());
            }
        }
        let number = note(&seen, &head).unwrap();
        let head = String::from_utf8(head).unwrap();
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
        let mut left: usize = length.map_or(0, |n| n.parse().unwrap());
        let stops_at = if chance.below(8) == 0 { chance.below(left as u64 + 1) as usize } else { 0 };
        let mut buffer = vec![0; 64 * 1024];
        while left > stops_at {
            let most = buffer.len().min(left);
            match stream.read(&mut buffer[..most]).await? {
                0 => return Ok(()),
                n => left -= n,
            }
        }
        if left > 0 {
            return Ok(());
        }
        match chance.below(10) {
            0 => return Ok(()),
            1 => return stream.write_all(b"HTTP/1.1 200 OK\r\nconte").await,
            2 => {
                respond(&mut stream, "200 OK", "connection: close\r\n", number.to_string().as_bytes())
                    .await?;
                return Ok(());
            }
            3 => {
                respond(&mut stream, "200 OK", "", number.to_string().as_bytes()).await?;
                return Ok(());
            }
            4 => {
                respond(&mut stream, "200 OK", "", number.to_string().as_bytes()).await?;
                tokio::time::sleep(Duration::from_micros(chance.below(3000))).await;
                return Ok(());
            }
            _ => respond(&mut stream, "200 OK", "", number.to_string().as_bytes()).await?,
        }
    }
}

fn some_request(number: u64, chance: &Chance) -> http::Request<TestBody> {
    let path = format!("/{number}.");
    let methods = [Method::GET, Method::PUT, Method::DELETE, Method::POST, Method::POST, Method::PATCH];
    let method = methods[chance.below(6) as usize].clone();
    match chance.below(4) {
        0 | 1 => request(method, &path, TestBody::empty()),
        2 => request(method, &path, TestBody::full(vec![b'x'; chance.below(2000) as usize + 1])),
        _ => {
            let chunks = chance.below(20) + 1;
            let (tx, body) = TestBody::channel(Some(chunks * 50_000));
            let fails_at = if chance.below(6) == 0 { chance.below(chunks) } else { chunks };
            tokio::task::spawn_local(async move {
                for i in 0..chunks {
                    let item = match i == fails_at {
                        true => Err("went away".into()),
                        false => Ok(Frame::data(Bytes::from(vec![b'x'; 50_000]))),
                    };
                    if tx.send(item).await.is_err() {
                        break;
                    }
                }
            });
            request(method, &path, body)
        }
    }
}

fn run(seed: u64) -> [usize; 3] {
    on_a_worker(async move {
        let (chance, seen) = (Chance::new(seed), Seen::default());
        let origin = Origin::new({
            let (chance, seen) = (chance.clone(), Rc::clone(&seen));
            move |stream, _| misbehave(stream, chance.clone(), Rc::clone(&seen))
        })
        .await;
        let breaker = BreakerSettings { threshold: u32::MAX, ..BreakerSettings::default() };
        let settings = ClusterSettings { breaker, ..ClusterSettings::default() };
        let dead = dead_address().await;
        let cluster = cluster_with(
            &spec([origin.addr, origin.addr, dead].map(beamline_model::Endpoint::Address)),
            settings,
        );
        let pools = Pools::new();
        let counts = Rc::new(Cell::new([0; 3]));
        let tasks = (0..8_u64).map(|task| {
            let (pools, cluster, chance) = (pools.clone(), Arc::clone(&cluster), chance.clone());
            let (seen, counts) = (Rc::clone(&seen), Rc::clone(&counts));
            tokio::task::spawn_local(async move {
                for number in (task * 100..).take(100) {
                    let request = some_request(number, &chance);
                    let repeatable =
                        request.method().is_idempotent() && http_body::Body::is_end_stream(request.body());
                    let outcome = send(&pools, &cluster, request).await;
                    // What is on its way to the origin arrives before the judgement.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let times = seen.borrow().get(&number).copied().unwrap_or(0);
                    assert!(times <= if repeatable { 2 } else { 1 }, "{number} was seen {times} times");
                    let mut count = counts.get();
                    match outcome {
                        Ok(sent) => {
                            assert!(times >= 1);
                            assert_eq!(text(sent).await, number.to_string());
                            count[0] += 1;
                        }
                        Err(error) if error.sent == Sentness::Nothing => {
                            assert_eq!(times, 0, "{number} was seen, though nothing was sent: {error:?}");
                            assert!(
                                error.request.is_some()
                                    || error.begun.is_some()
                                    || error.kind == ErrorKind::RequestBody
                            );
                            count[1] += 1;
                        }
                        Err(error) => {
                            assert!(!repeatable || error.request.is_some(), "{error:?}");
                            count[2] += 1;
                        }
                    }
                    counts.set(count);
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        counts.get()
    })
}

#[test]
fn whatever_happens_nothing_means_nothing_and_once_means_once() {
    let mut all = [0; 3];
    for seed in 0..10 {
        run(seed).iter().zip(&mut all).for_each(|(n, sum)| *sum += n);
    }
    let [answered, not_sent, maybe_sent] = all;
    assert!(answered > 4000 && not_sent > 0 && maybe_sent > 500, "{all:?}: every outcome was met");
}

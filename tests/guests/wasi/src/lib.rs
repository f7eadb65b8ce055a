//! Asks for what WASI has, and answers what it was given. A request's path says what is asked for: `/random/16`.
//!
//! A component's imports are what its toolchain links, needed or not: this one imports all that it names.

use beamline_sdk::{Filter, Request, Verdict};
use serde_json::{Value, json};
use wasip2::{
    cli::{environment, exit, stderr, stdin, stdout, terminal_stderr, terminal_stdin, terminal_stdout},
    clocks::{monotonic_clock, wall_clock},
    filesystem::{preopens, types::Descriptor},
    io::{poll, streams::StreamError},
    random::{insecure, insecure_seed, random},
    sockets::{
        instance_network, ip_name_lookup,
        network::{ErrorCode, IpAddressFamily},
        tcp_create_socket, udp_create_socket,
    },
};

struct Wasi;

const MILLISECOND: u64 = 1_000_000;

fn surroundings() -> Value {
    json!({
        "environment": environment::get_environment(),
        "arguments": environment::get_arguments(),
        "folder": environment::initial_cwd(),
        "files": preopens::get_directories().len(),
        "terminals": [
            terminal_stdin::get_terminal_stdin().is_some(),
            terminal_stdout::get_terminal_stdout().is_some(),
            terminal_stderr::get_terminal_stderr().is_some(),
        ],
    })
}

fn input() -> Value {
    let input = stdin::get_stdin();
    let closed = |error: StreamError| matches!(error, StreamError::Closed);
    json!({
        "read": input.read(10).is_err_and(closed),
        "blocking-read": input.blocking_read(u64::MAX).is_err_and(closed),
        "skip": input.skip(10).is_err_and(closed),
        "ready": input.subscribe().ready(),
    })
}

fn refusal<T>(result: Result<T, ErrorCode>) -> String {
    match result {
        Ok(_) => "granted".into(),
        Err(error) => error.name().into(),
    }
}

fn sockets() -> Value {
    let network = instance_network::instance_network();
    json!({
        "tcp": refusal(tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4)),
        "udp": refusal(udp_create_socket::create_udp_socket(IpAddressFamily::Ipv6)),
        "name": refusal(ip_name_lookup::resolve_addresses(&network, "localhost")),
    })
}

fn clocks() -> Value {
    let (wall, resolution) = (wall_clock::now(), wall_clock::resolution());
    let (first, then) = (monotonic_clock::now(), monotonic_clock::now());
    json!({
        "wall": [wall.seconds, wall.nanoseconds],
        "resolution": [resolution.seconds, resolution.nanoseconds],
        "monotonic": [first, then],
    })
}

/// How many nanoseconds each of two ways to wait for so many milliseconds took; and which of three pollables was ready.
fn sleep(ms: u64) -> Value {
    let begun = monotonic_clock::now();
    monotonic_clock::subscribe_duration(ms * MILLISECOND).block();
    let then = monotonic_clock::now();
    let soon = monotonic_clock::subscribe_instant(then + ms * MILLISECOND);
    let late = monotonic_clock::subscribe_instant(u64::MAX);
    let ready = poll::poll(&[&late, &soon, &late]);
    json!({ "block": then - begun, "poll": monotonic_clock::now() - then, "ready": ready })
}

fn randomness(length: u64) -> Value {
    json!({
        "bytes": random::get_random_bytes(length).len(),
        "insecure": insecure::get_insecure_random_bytes(length).len(),
        "differ": random::get_random_u64() != insecure::get_insecure_random_u64(),
        "seed": insecure_seed::insecure_seed() != (0, 0),
    })
}

/// Prints a line in pieces on each output, and one more that is not ended.
fn print() -> Value {
    let (out, err) = (stdout::get_stdout(), stderr::get_stderr());
    let permitted = out.check_write().unwrap_or(0);
    for piece in ["first ", "line\nsecond line\nno ", "end"] {
        out.blocking_write_and_flush(piece.as_bytes()).expect("an output is never closed");
    }
    err.write(b"what went wrong\n").expect("an output is never closed");
    err.blocking_flush().expect("an output is never closed");
    json!({ "permitted": permitted > 0, "ready": out.subscribe().ready() })
}

/// Prints so many kibibytes at once: lines as long as `line` bytes.
fn flood(kib: u64, line: usize) -> Value {
    let mut text = vec![b'x'; (kib as usize) << 10];
    text.iter_mut().skip(line).step_by(line + 1).for_each(|byte| *byte = b'\n');
    let out = stdout::get_stdout();
    out.write(&text).expect("an output is never closed");
    json!("printed")
}

/// Prints zeroes without end, again and again.
fn zeroes(times: u64) -> Value {
    let out = stdout::get_stdout();
    (0..times).for_each(|_| out.write_zeroes(u64::MAX).expect("an output is never closed"));
    json!("printed")
}

/// Uses a handle of a file that nobody gave out.
fn forge(handle: u64) -> Value {
    // SAFETY: none: the host must not take the number for a handle.
    let file = unsafe { Descriptor::from_handle(handle as u32) };
    json!(file.stat().is_ok())
}

/// Keeps so many pollables at once.
fn hoard(pollables: u64) -> Value {
    let kept: Vec<_> = (0..pollables).map(|_| monotonic_clock::subscribe_duration(0)).collect();
    json!(poll::poll(&kept.iter().collect::<Vec<_>>()).len())
}

/// Polls one pollable many times over in one list.
fn repeat(times: u64) -> Value {
    let one = monotonic_clock::subscribe_duration(0);
    json!(poll::poll(&vec![&one; times as usize]).len())
}

/// Naps, for ever.
fn doze() -> Value {
    loop {
        monotonic_clock::subscribe_duration(MILLISECOND).block();
    }
}

impl Filter for Wasi {
    type Config = ();

    fn on_request((): &(), request: &mut Request) -> Verdict {
        let path = request.path();
        let mut parts = path.split('/').skip(1);
        let what = parts.next().unwrap_or_default();
        let number = parts.next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let told = match what {
            "surroundings" => surroundings(),
            "input" => input(),
            "sockets" => sockets(),
            "clocks" => clocks(),
            "sleep" => sleep(number),
            "random" => randomness(number),
            "print" => print(),
            "flood" => flood(number, 100),
            "lines" => flood(number, 0),
            "zeroes" => zeroes(number),
            "forge" => forge(number),
            "hoard" => hoard(number),
            "repeat" => repeat(number),
            "doze" => doze(),
            "exit" => {
                exit::exit(if number == 0 { Ok(()) } else { Err(()) });
                json!("still there")
            }
            "exit-with-code" => {
                exit::exit_with_code(number as u8);
                json!("still there")
            }
            "wait-for-nothing" => json!(poll::poll(&[])),
            _ => return Verdict::next(),
        };
        Verdict::respond(200).body(told.to_string()).into()
    }
}

beamline_sdk::export!(Wasi);

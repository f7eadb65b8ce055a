//! The real clients. A missing one is an error that says what to install, never a skipped test.

use std::{
    net::SocketAddr,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::process;

/// Where a program is, or which Debian package has it.
fn found(program: &str, package: &str) -> Result<()> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let here = std::env::split_paths(&folders).chain([std::path::PathBuf::from("/usr/sbin")]);
    ensure!(
        here.into_iter().any(|folder| folder.join(program).is_file()),
        "`{program}` is not installed, and this needs it: apt-get install {package} (Debian, Ubuntu)"
    );
    Ok(())
}

/// Says which of these programs are missing.
///
/// # Errors
/// Where one is; the message says what to install.
pub fn require(programs: &[&str]) -> Result<()> {
    programs.iter().try_for_each(|program| match *program {
        "cc" => found("cc", "gcc"),
        "node" => found("node", "nodejs"),
        other => found(other, other),
    })
}

/// Runs a command to its end, or kills it after `within`.
///
/// # Errors
/// Where it can't be started, or doesn't end by then.
pub fn run(command: &mut Command, within: Duration) -> Result<Output> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Read on other threads: a child that fills a pipe would otherwise never end.
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|p| Box::new(p) as _));
    let stderr = read(child.stderr.take().map(|p| Box::new(p) as _));
    let Some(status) = process::wait_exit(&mut child, within)? else {
        let _ = child.kill();
        let _ = child.wait();
        bail!("{command:?} did not end within {within:?}")
    };
    let joined = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    Ok(Output { status, stdout: joined(stdout), stderr: joined(stderr) })
}

/// What curl made of a request.
#[derive(Clone, Debug)]
pub struct Curled {
    /// The status, or 0 where no response came.
    pub status: u16,
    /// The body; with `-i` among the arguments the head before it.
    pub body: Vec<u8>,
    /// curl's exit code: 0, 7 (refused), 28 (time-out), 52 (empty reply), 56 (reset) and so on.
    pub exit: i32,
}

/// Runs curl with these arguments, within a minute.
///
/// # Errors
/// Where curl isn't installed or doesn't end.
pub fn curl(arguments: &[&str]) -> Result<Curled> {
    require(&["curl"])?;
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "50", "-w", "%{stderr}%{http_code}"]).args(arguments);
    let output = run(&mut command, Duration::from_secs(60))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let status = said.get(said.len().saturating_sub(3)..).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    Ok(Curled { status, body: output.stdout, exit: output.status.code().unwrap_or(-1) })
}

/// What wrk counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wrked {
    /// Responses.
    pub requests: u64,
    /// Responses other than 2xx and 3xx.
    pub bad_status: u64,
    /// Connects that failed.
    pub connect_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Responses that did not come within 2 s.
    pub timeouts: u64,
}

impl Wrked {
    /// What went wrong, added up.
    pub fn errors(&self) -> u64 {
        self.bad_status + self.connect_errors + self.read_errors + self.write_errors + self.timeouts
    }
}

/// Runs wrk with one thread against `http://{to}{path}` with these header lines.
///
/// # Errors
/// Where wrk isn't installed or prints what can't be read.
pub fn wrk(to: SocketAddr, path: &str, headers: &[&str], connections: u32, seconds: u32) -> Result<Wrked> {
    require(&["wrk"])?;
    let mut command = Command::new("wrk");
    command.args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s")]);
    headers.iter().for_each(|line| {
        command.args(["-H", line]);
    });
    command.arg(format!("http://{to}{path}"));
    let output = run(&mut command, Duration::from_secs(u64::from(seconds) + 30))?;
    let text = String::from_utf8_lossy(&output.stdout);
    read_wrk(&text).with_context(|| {
        format!("wrk said what can't be read:\n{text}{}", String::from_utf8_lossy(&output.stderr))
    })
}

fn read_wrk(text: &str) -> Option<Wrked> {
    let mut seen = Wrked::default();
    let mut whole = false;
    for line in text.lines().map(str::trim) {
        if let Some((n, _)) = line.split_once(" requests in ") {
            seen.requests = n.parse().ok()?;
            whole = true;
        } else if let Some(n) = line.strip_prefix("Non-2xx or 3xx responses: ") {
            seen.bad_status = n.parse().ok()?;
        } else if let Some(errors) = line.strip_prefix("Socket errors: ") {
            for part in errors.split(", ") {
                let (kind, n) = part.split_once(' ')?;
                let n = n.parse().ok()?;
                match kind {
                    "connect" => seen.connect_errors = n,
                    "read" => seen.read_errors = n,
                    "write" => seen.write_errors = n,
                    "timeout" => seen.timeouts = n,
                    _ => return None,
                }
            }
        }
    }
    whole.then_some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::Origin;

    #[test]
    fn curl_tells_status_body_and_exit() {
        let mut origin = Origin::start("acme").unwrap();
        let url = format!("http://{}/status/418", origin.address());
        let seen = curl(&["-i", &url]).unwrap();
        assert_eq!((seen.status, seen.exit), (418, 0));
        assert!(seen.body.starts_with(b"HTTP/1.1 418"));
        origin.stop();
        let refused = curl(&[&url]).unwrap();
        assert_eq!((refused.status, refused.exit), (0, 7));
    }

    #[test]
    fn wrk_is_understood() {
        let origin = Origin::start("acme").unwrap();
        let seen = wrk(origin.address(), "/", &["x-a: b"], 2, 1).unwrap();
        assert!(seen.requests > 10, "{seen:?}");
        assert_eq!(seen.errors(), 0, "{seen:?}");
        let text = "  8 requests in 1.00s, 2KB read\n  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n";
        assert_eq!(read_wrk(text).unwrap().errors(), 15);
        assert_eq!(read_wrk("unable to connect"), None);
    }

    #[test]
    fn a_missing_program_is_an_error_that_says_what_to_install() {
        let error = require(&["no-such-program"]).unwrap_err().to_string();
        assert!(error.contains("apt-get install no-such-program"), "{error}");
    }
}

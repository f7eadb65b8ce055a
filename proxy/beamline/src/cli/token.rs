//! Where a command's token comes from, and where a new one goes.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{failure::Failure, node_args::NodeArgs};

/// The file of a data folder that holds the operator's token.
pub(crate) const OPERATOR_TOKEN: &str = "operator-token";

/// No token has more bytes; a longer file is something else.
const TOKEN_MAX: u64 = 1024;

/// The token to present to the node at `host`: of `--token-file`, else of `--token` or its environment variable, else of the
/// data folder.
pub(crate) fn find(args: &NodeArgs, host: &str) -> Result<String, Failure> {
    if let Some(file) = &args.token_file {
        return read(file)
            .map_err(|problem| Failure::Local(format!("the token file {} {problem}", file.display())));
    }
    if let Some(token) = args.token.as_deref().map(str::trim).filter(|token| !token.is_empty()) {
        return Ok(token.to_owned());
    }
    let file = args.data_dir.join(OPERATOR_TOKEN);
    if !is_local(host) {
        // A token must not go to a machine only because somebody mistyped an address.
        return Err(Failure::Local(format!(
            "no token given: the operator's token of a data folder is only sent to a node on this machine, and {host} \
             may be another one; give the token by --token-file, --token or BEAMLINE_TOKEN"
        )));
    }
    read(&file).map_err(|problem| {
        Failure::Local(format!(
            "no token given, and {} {problem}: give one by --token-file, --token or BEAMLINE_TOKEN, or name the \
             node's data folder by --data-dir",
            file.display()
        ))
    })
}

fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let opened = File::open(file).map_err(|error| format!("cannot be read ({error})"))?;
    opened
        .take(TOKEN_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| format!("cannot be read ({error})"))?;
    match text.trim() {
        "" => Err("is empty".into()),
        _ if text.len() as u64 > TOKEN_MAX => Err("is too long to hold a token".into()),
        token => Ok(token.to_owned()),
    }
}

fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// A new file for a token that is still to come: made before the token is asked for, since it is shown only once.
/// Removed again where no token came.
#[derive(Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl TokenFile {
    /// Makes the file, readable by its owner alone. A file that exists is left as it is.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file, kept: false }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Failure::Local(format!(
                "{} exists and may hold a token: name a file that does not exist",
                path.display()
            ))),
            Err(error) => {
                Err(Failure::Local(format!("{} cannot be made ({error}): name another file", path.display())))
            }
        }
    }

    /// Writes the token.
    ///
    /// # Errors
    /// What stood against it; the file is then gone, and the token nowhere but with the caller.
    pub(crate) fn keep(mut self, token: &str) -> io::Result<()> {
        self.file.write_all(format!("{token}\n").as_bytes())?;
        self.file.sync_all()?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing is lost where this fails: the file is empty.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cli::testing::node_args;

    #[test]
    fn a_token_file_counts_before_a_token_and_a_token_before_the_data_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (file, data) = (dir.path().join("t"), dir.path().join(OPERATOR_TOKEN));
        std::fs::write(&file, "blt_file\n").unwrap();
        std::fs::write(&data, "blo_data\n").unwrap();
        let mut args = node_args("http://127.0.0.1:9090");
        args.data_dir = dir.path().to_owned();
        args.token = None;
        assert_eq!(find(&args, "127.0.0.1").unwrap(), "blo_data");
        args.token = Some(String::new());
        assert_eq!(find(&args, "localhost").unwrap(), "blo_data", "an empty variable is none");
        args.token = Some("blt_arg".into());
        assert_eq!(find(&args, "127.0.0.1").unwrap(), "blt_arg");
        args.token_file = Some(file);
        assert_eq!(find(&args, "127.0.0.1").unwrap(), "blt_file");
        args.token_file = Some(dir.path().join("missing"));
        let problem = find(&args, "127.0.0.1").unwrap_err().to_string();
        assert!(problem.contains("missing cannot be read (No such file"), "{problem}");
    }

    #[test]
    fn the_data_folders_token_stays_on_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(OPERATOR_TOKEN), "blo_data\n").unwrap();
        let mut args = node_args("http://127.0.0.1:9090");
        (args.token, args.data_dir) = (None, dir.path().to_owned());
        for here in ["localhost", "127.0.0.1", "127.8.8.8", "[::1]", "[::ffff:127.0.0.1]"] {
            assert!(find(&args, here).is_ok(), "{here}");
        }
        for elsewhere in ["10.0.0.1", "localhost.example.com", "[fe80::1]", "example.com"] {
            let problem = find(&args, elsewhere).unwrap_err().to_string();
            assert!(problem.contains("only sent to a node on this machine"), "{problem}");
        }
    }

    #[test]
    fn what_cannot_be_a_token_is_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        for (content, expected) in [("", "is empty"), (&*"x".repeat(2000), "too long")] {
            std::fs::write(&file, content).unwrap();
            assert!(read(&file).unwrap_err().contains(expected));
        }
    }

    #[test]
    fn a_new_token_is_for_its_owner_alone_and_never_written_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acme.token");
        TokenFile::create(&path).unwrap().keep("blt_1").unwrap();
        assert_eq!(read(&path).unwrap(), "blt_1");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(TokenFile::create(&path).unwrap_err().to_string().contains("exists"));
        assert_eq!(read(&path).unwrap(), "blt_1");
    }

    #[test]
    fn a_token_that_never_came_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acme.token");
        drop(TokenFile::create(&path).unwrap());
        assert!(!path.exists());
    }
}

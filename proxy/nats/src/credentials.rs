//! What a connection shows of itself to its server: named by [`Auth`], read from its files for each connection.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{files, nkey::UserKey};

/// The longest secret of one line.
const SECRET_MAX: usize = 4096;

/// As whom a connection shows itself. Secrets are in files, which nobody but their owner may use (mode 0600 or less).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// As nobody.
    #[default]
    None,
    /// By a token.
    Token {
        /// Its file, of one line.
        file: PathBuf,
    },
    /// As a user with a password.
    User {
        /// The user.
        user: String,
        /// The password's file, of one line.
        password_file: PathBuf,
    },
    /// By an NKey: its seed signs what the server asks to be signed, and is never sent.
    Nkey {
        /// The seed's file, of one line.
        seed_file: PathBuf,
    },
    /// By a JWT of a user, and the seed of its NKey.
    Creds {
        /// The file of both, as `nsc` writes it (`.creds`).
        file: PathBuf,
    },
}

/// What was read. It can be shown to a server, and by no `Debug`.
pub(crate) enum Credentials {
    None,
    Token(Zeroizing<String>),
    User { user: String, password: Zeroizing<String> },
    Nkey(UserKey),
    Jwt { jwt: Zeroizing<String>, key: UserKey },
}

/// The fields of CONNECT that show them.
#[derive(Default)]
pub(crate) struct Shown<'a> {
    pub(crate) user: Option<&'a str>,
    pub(crate) pass: Option<&'a str>,
    pub(crate) auth_token: Option<&'a str>,
    pub(crate) nkey: Option<&'a str>,
    pub(crate) jwt: Option<&'a str>,
    pub(crate) sig: Option<String>,
}

impl Credentials {
    /// Reads what `auth` names. Errors name the file, and show nothing of what is in it.
    pub(crate) fn read(auth: &Auth) -> Result<Self, String> {
        Ok(match auth {
            Auth::None => Self::None,
            Auth::Token { file } => Self::Token(line(file)?),
            Auth::User { user, password_file } => {
                Self::User { user: user.clone(), password: line(password_file)? }
            }
            Auth::Nkey { seed_file } => Self::Nkey(key(seed_file, &line(seed_file)?)?),
            Auth::Creds { file } => {
                let text = files::private(file)?;
                let missing =
                    |what| format!("{}: expected a .creds file; found no {what} in it", file.display());
                let jwt = block(&text, "NATS USER JWT").ok_or_else(|| missing("NATS USER JWT"))?;
                let seed = block(&text, "USER NKEY SEED").ok_or_else(|| missing("USER NKEY SEED"))?;
                let key = key(file, seed)?;
                match subject(jwt) {
                    Some(user) if user == key.public() => {
                        Self::Jwt { jwt: Zeroizing::new(jwt.to_owned()), key }
                    }
                    Some(_) => {
                        return Err(format!(
                            "{}: its NKey seed is not the one of its JWT's user: make the file anew",
                            file.display()
                        ));
                    }
                    None => {
                        return Err(format!(
                            "{}: expected a user's JWT and its seed; found a JWT that cannot be read: make the file anew (`nsc generate creds`)",
                            file.display()
                        ));
                    }
                }
            }
        })
    }

    /// What CONNECT says of them to a server that sent this nonce.
    pub(crate) fn show(&self, nonce: Option<&str>) -> Result<Shown<'_>, &'static str> {
        let sign = |key: &UserKey| {
            const UNASKED: &str =
                "asks for no NKey or JWT, and the connection has one: give it what the server asks for";
            nonce.map_or(Err(UNASKED), |nonce| key.sign(nonce)).map(Some)
        };
        Ok(match self {
            Self::None => Shown::default(),
            Self::Token(token) => Shown { auth_token: Some(token), ..Shown::default() },
            Self::User { user, password } => {
                Shown { user: Some(user), pass: Some(password), ..Shown::default() }
            }
            Self::Nkey(key) => Shown { nkey: Some(key.public()), sig: sign(key)?, ..Shown::default() },
            Self::Jwt { jwt, key } => Shown { jwt: Some(jwt), sig: sign(key)?, ..Shown::default() },
        })
    }

    /// A server's words, without what it may repeat of them.
    pub(crate) fn cut_out(&self, text: String) -> String {
        let secret = match self {
            Self::Token(secret) | Self::User { password: secret, .. } | Self::Jwt { jwt: secret, .. } => {
                secret
            }
            Self::None | Self::Nkey(_) => return text,
        };
        // The text may end in the midst of it.
        let shown: String = secret.chars().take(16).collect();
        if text.contains(shown.as_str()) { "(its words held the connection's secret)".into() } else { text }
    }
}

/// The one line of a file that holds a secret.
fn line(path: &Path) -> Result<Zeroizing<String>, String> {
    let text = files::private(path)?;
    let line = text.trim_end_matches(['\r', '\n']);
    if line.is_empty() || line.len() > SECRET_MAX || line.contains('\n') {
        return Err(format!("{}: expected one line of 1 to {SECRET_MAX} bytes, the secret", path.display()));
    }
    Ok(Zeroizing::new(line.to_owned()))
}

fn key(path: &Path, seed: &str) -> Result<UserKey, String> {
    UserKey::parse(seed).map_err(|why| format!("{}: {why}", path.display()))
}

/// The line between `-----BEGIN NAME-----` and its end.
fn block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| {
        line.strip_prefix("-----BEGIN ")
            .and_then(|line| line.strip_prefix(name))
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b == b'-'))
    })?;
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with('-'))
}

/// Whose JWT it is. Whether it holds is for the server to say.
fn subject(jwt: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&claims).ok().map(|Claims { sub }| sub)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    const PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        (dir, path)
    }

    fn jwt(subject: &str) -> String {
        let part = |text: String| URL_SAFE_NO_PAD.encode(text);
        format!(
            "{}.{}.c2ln",
            part("{\"alg\":\"ed25519-nkey\"}".into()),
            part(format!("{{\"sub\":\"{subject}\"}}"))
        )
    }

    fn creds(jwt: &str, seed: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n****\n"
        )
    }

    #[test]
    fn each_kind_is_read_from_its_file_and_shown() {
        let (_dir, path) = file("sesame\r\n");
        let token = Credentials::read(&Auth::Token { file: path.clone() }).ok().unwrap();
        assert_eq!(token.show(None).ok().unwrap().auth_token, Some("sesame"));
        let user = Auth::User { user: "edge".into(), password_file: path };
        let user = Credentials::read(&user).ok().unwrap();
        let shown = user.show(Some("nonce")).ok().unwrap();
        assert_eq!((shown.user, shown.pass, shown.sig), (Some("edge"), Some("sesame"), None));

        let (_dir, path) = file(SEED);
        let nkey = Credentials::read(&Auth::Nkey { seed_file: path }).ok().unwrap();
        let shown = nkey.show(Some("nonce")).ok().unwrap();
        assert_eq!(shown.nkey, Some(PUBLIC));
        assert_eq!(shown.sig, UserKey::parse(SEED).ok().unwrap().sign("nonce").ok());
        assert!(nkey.show(None).err().unwrap().contains("asks for no NKey or JWT"));

        let (_dir, path) = file(&creds(&jwt(PUBLIC), SEED).replace('\n', "\r\n"));
        let both = Credentials::read(&Auth::Creds { file: path }).ok().unwrap();
        let shown = both.show(Some("nonce")).ok().unwrap();
        assert_eq!((shown.jwt, shown.nkey), (Some(jwt(PUBLIC).as_str()), None));
        assert!(shown.sig.is_some());
    }

    #[test]
    fn what_cannot_be_used_is_said_and_not_repeated() {
        let creds_of = |text: String| {
            let (dir, path) = file(&text);
            (dir, Auth::Creds { file: path })
        };
        let seed_of = |text: &str| {
            let (dir, path) = file(text);
            (dir, Auth::Nkey { seed_file: path })
        };
        let other = jwt("UOTHER");
        for ((_dir, auth), expected) in [
            (creds_of("sesame".into()), "found no NATS USER JWT"),
            (creds_of(format!("-----BEGIN NATS USER JWT-----\n{other}\n---\n")), "found no USER NKEY SEED"),
            (creds_of(creds(&other, SEED)), "is not the one of its JWT's user"),
            (creds_of(creds("sesame", SEED)), "found a JWT that cannot be read"),
            (creds_of(creds(&other, "sesame")), "58 characters"),
            (seed_of("sesame"), "58 characters"),
            (seed_of(""), "expected one line"),
            (seed_of("sesame\nsesame"), "expected one line"),
        ] {
            let error = Credentials::read(&auth).err().unwrap();
            assert!(error.contains(expected) && !error.contains("sesame"), "{error}");
            assert!(!error.contains(&SEED[..8]), "{error}");
        }
    }

    #[test]
    fn a_server_that_repeats_a_secret_does_not_bring_it_into_a_log() {
        let token = Credentials::Token(Zeroizing::new("a-long-secret-of-a-connection".into()));
        assert!(!token.cut_out("bad a-long-secret-of-a-conn".into()).contains("secret-of"));
        assert_eq!(token.cut_out("Authorization Violation".into()), "Authorization Violation");
    }
}

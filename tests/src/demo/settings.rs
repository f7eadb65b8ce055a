//! What the demo can be told: where its modules and manifests are, and which ports it takes.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail, ensure};
use clap::Parser;

use crate::ports::Port;

/// Tells the story of BeamLine with real requests on 127.0.0.1
///
/// Starts two small origins, a receiver of traces and a node, uploads the stock filters, applies the tenants of
/// `examples/`, and shows what becomes of requests. Then it stays up until Ctrl-C.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "demo",
    after_help = "With make: `make demo ONCE=1`, `make demo DEMO_LISTEN=18080 DEMO_ADMIN=19090`"
)]
pub struct Settings {
    /// End after the story, with an error where something did not come out as told
    #[arg(long)]
    pub once: bool,

    /// The folder of the Wasm modules that scripts/build-guests.sh builds
    #[arg(long, value_name = "FOLDER", default_value = Self::GUESTS)]
    pub guests: PathBuf,

    /// The folder of the example tenants
    #[arg(long, value_name = "FOLDER", default_value = "examples")]
    pub examples: PathBuf,

    /// The proxy's port
    #[arg(long, value_name = "PORT", env = "DEMO_LISTEN", default_value_t = 8080)]
    pub listen: u16,

    /// The admin API's port
    #[arg(long, value_name = "PORT", env = "DEMO_ADMIN", default_value_t = 9090)]
    pub admin: u16,

    /// The first origin's port
    #[arg(long, value_name = "PORT", env = "DEMO_ORIGIN_1", default_value_t = Self::ORIGINS[0])]
    pub origin_1: u16,

    /// The second origin's port
    #[arg(long, value_name = "PORT", env = "DEMO_ORIGIN_2", default_value_t = Self::ORIGINS[1])]
    pub origin_2: u16,

    /// The port of the receiver of traces
    #[arg(long, value_name = "PORT", env = "DEMO_OTLP", default_value_t = 4318)]
    pub otlp: u16,
}

impl Settings {
    /// Where `make guests` puts the modules, and where the manifests of `examples/` look for them.
    pub(super) const GUESTS: &str = "target/guests";
    /// The ports that the manifests of `examples/` have for the origins.
    pub(super) const ORIGINS: [u16; 2] = [9001, 9002];

    /// The origins' ports.
    pub(super) fn origins(&self) -> [u16; 2] {
        [self.origin_1, self.origin_2]
    }

    /// Whether what the manifests of `examples/` say about ports and paths holds.
    pub(super) fn are_those_of_the_examples(&self) -> bool {
        self.origins() == Self::ORIGINS && self.guests == Path::new(Self::GUESTS)
    }

    /// The URL of the admin API.
    pub(super) fn admin_url(&self) -> String {
        format!("http://{}", SocketAddr::from(([127, 0, 0, 1], self.admin)))
    }

    /// Checks that every port is free and every folder there, before anything is started.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            self.guests.join("router.wasm").is_file(),
            "the Wasm modules are not in {}: build them with `make guests`",
            self.guests.display()
        );
        ensure!(
            self.examples.join("acme").is_dir(),
            "the example tenants are not in {}: start the demo in the project's folder, or name the folder with --examples",
            self.examples.display()
        );
        let wanted = [
            (self.listen, "the proxy", "DEMO_LISTEN"),
            (self.admin, "the admin API", "DEMO_ADMIN"),
            (self.origin_1, "the first origin", "DEMO_ORIGIN_1"),
            (self.origin_2, "the second origin", "DEMO_ORIGIN_2"),
            (self.otlp, "the receiver of traces", "DEMO_OTLP"),
        ];
        for (i, (port, user, variable)) in wanted.into_iter().enumerate() {
            if let Some((_, other, _)) = wanted[..i].iter().find(|(p, ..)| *p == port) {
                bail!(
                    "port {port} is wanted for {user} and for {other}: give one of them another, such as {variable}={}",
                    20_000 + i
                );
            }
            if let Err(error) = Port::named(port) {
                bail!(
                    "port {port}, wanted for {user}, cannot be had ({}): stop what listens on it (`ss -ltnp 'sport = \
                     :{port}'` shows it), or choose another: make demo {variable}={}",
                    error.root_cause(),
                    20_000 + i
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_that_is_taken_is_named_with_its_use_and_the_way_out() {
        let ports: Vec<_> = (0..5).map(|_| Port::reserve().unwrap()).collect();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("acme")).unwrap();
        std::fs::write(folder.path().join("router.wasm"), b"").unwrap();
        let mut settings = Settings {
            once: true,
            guests: folder.path().into(),
            examples: folder.path().into(),
            listen: ports[0].number(),
            admin: ports[1].number(),
            origin_1: ports[2].number(),
            origin_2: ports[3].number(),
            otlp: ports[4].number(),
        };
        settings.check().unwrap();
        let _taken = TcpListener::bind(ports[1].address()).unwrap();
        let error = settings.check().unwrap_err().to_string();
        let number = ports[1].number();
        assert!(
            error.contains(&format!("port {number}, wanted for the admin API"))
                && error.contains("DEMO_ADMIN="),
            "{error}"
        );
        settings.admin = settings.listen;
        let error = settings.check().unwrap_err().to_string();
        assert!(error.contains("for the admin API and for the proxy"), "{error}");
    }
}

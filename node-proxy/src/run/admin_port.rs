//! The admin port, which may be another process's until that one hands it over.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use culvert_identity::admin::{Admin, AdminServer, Readiness};
use culvert_identity::logging::LogControl;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::admin::{self, AdminSources};

/// How long a port is waited for that a process which has just ended may still have.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(200);

/// Opened once.
pub(super) struct AdminPort {
    address: SocketAddr,
    sources: AdminSources,
    readiness: Readiness,
    instance: String,
    log: LogControl,
    server: Arc<Mutex<Option<AdminServer>>>,
}

impl AdminPort {
    pub fn new(
        address: SocketAddr,
        sources: AdminSources,
        readiness: Readiness,
        instance: String,
        log: LogControl,
    ) -> Self {
        Self { address, sources, readiness, instance, log, server: Arc::default() }
    }

    /// What is served, for whoever hands it over; dropping it ends the serving.
    pub fn server(&self) -> Arc<Mutex<Option<AdminServer>>> {
        self.server.clone()
    }

    /// # Errors
    /// When the address cannot be listened on.
    pub fn open(&self) -> io::Result<()> {
        let server = self.admin().start(self.address)?;
        *self.server.lock() = Some(server);
        Ok(())
    }

    /// Goes on with the last process's socket if it is the same address; opens it otherwise, unless it is open.
    ///
    /// # Errors
    /// When the address cannot be listened on for a while.
    pub async fn go_on(&self, inherited: Option<(SocketAddr, TcpListener)>) -> io::Result<()> {
        if self.server.lock().is_some() {
            return Ok(());
        }
        if let Some((_, listener)) = inherited.filter(|(address, _)| *address == self.address) {
            let server = self.admin().start_on(listener)?;
            *self.server.lock() = Some(server);
            return Ok(());
        }
        let begun = Instant::now();
        while let Err(error) = self.open() {
            if error.kind() != io::ErrorKind::AddrInUse || begun.elapsed() >= PATIENCE {
                return Err(error);
            }
            warn!(%error, "waiting for the admin port");
            sleep(RETRY).await;
        }
        Ok(())
    }

    fn admin(&self) -> Admin {
        admin::server(self.sources.clone(), self.readiness.clone(), self.log.clone())
            .named(self.instance.clone())
    }
}

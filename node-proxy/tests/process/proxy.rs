//! A node proxy under test, and where it lives.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use culvert_identity::testing::TestAuthority;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Everything here happens within this.
const EVENTUALLY: Duration = Duration::from_secs(20);

/// Files of one node, and the authority it trusts.
pub struct Home {
    pub directory: tempfile::TempDir,
    pub authority: TestAuthority,
}

impl Home {
    pub fn new() -> Self {
        let home = Self { directory: tempfile::tempdir().unwrap(), authority: TestAuthority::new("root") };
        // Node `one`, as a bound token says it; who checks the signature is not part of these tests.
        let claims = "eyJpc3MiOiJzYW5kYm94Iiwic3ViIjoic3lzdGVtOnNlcnZpY2VhY2NvdW50OmN1bHZlcnQtc3lzdGVtOmN1bHZlcnQtbm\
                      9kZS1wcm94eSIsImF1ZCI6WyJjdWx2ZXJ0LmRldiJdLCJleHAiOjQxMDAwMDAwMDAsImt1YmVybmV0ZXMuaW8iOnsibmFt\
                      ZXNwYWNlIjoiY3VsdmVydC1zeXN0ZW0iLCJzZXJ2aWNlYWNjb3VudCI6eyJuYW1lIjoiY3VsdmVydC1ub2RlLXByb3h5Iiw\
                      idWlkIjoicyJ9LCJub2RlIjp7Im5hbWUiOiJvbmUiLCJ1aWQiOiJuIn19fQ";
        std::fs::write(home.path("token"), format!("e30.{claims}.e30")).unwrap();
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write_bundle(&self) {
        std::fs::write(self.path("bundle.pem"), self.authority.pem()).unwrap();
    }

    pub fn enrolment_socket(&self) -> PathBuf {
        self.path("enrolment.sock")
    }

    pub fn damage_kept_state(&self) {
        let path = self.path("state").join("mesh-state");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
}

pub struct Proxy {
    child: Child,
    admin: SocketAddr,
    log: PathBuf,
}

impl Proxy {
    pub fn start(home: &Home, controller: &str) -> Self {
        Self::start_with(home, controller, &[])
    }

    /// With more flags.
    pub fn start_with(home: &Home, controller: &str, arguments: &[&str]) -> Self {
        // On a loopback address of its own: a port that was free a moment ago may be another test's by now.
        let address = std::net::Ipv4Addr::from(0x7f01_0000 + rand::random_range(0..0x00fe_0000_u32));
        let admin = std::net::TcpListener::bind((address, 0)).unwrap().local_addr().unwrap();
        let log = home.path(&format!("log-{}", admin.port()));
        let child = Command::new(env!("CARGO_BIN_EXE_culvert-node-proxy"))
            .args(["run", "--controller", controller, "--ca", "https://127.0.0.1:1"])
            .arg("--token")
            .arg(home.path("token"))
            .arg("--trust-bundle")
            .arg(home.path("bundle.pem"))
            .arg("--state-dir")
            .arg(home.path("state"))
            .arg("--enrolment-socket")
            .arg(home.enrolment_socket())
            .args(["--admin", &admin.to_string(), "--workers", "1", "--drain", "2"])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, admin, log }
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path).await
    }

    pub async fn request(&self, method: &str, path: &str) -> (u16, String) {
        self.try_request(method, path)
            .await
            .unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()))
    }

    async fn try_request(&self, method: &str, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin).await?;
        let request = format!("{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        timeout(EVENTUALLY, stream.read_to_string(&mut answer)).await??;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok((status, body.to_owned()))
    }

    /// Waits until a path answers with a status and a body that contains a text.
    pub async fn eventually(&mut self, path: &str, status: u16, text: &str) {
        let deadline = Instant::now() + EVENTUALLY;
        loop {
            let answer = self.try_request("GET", path).await;
            if matches!(&answer, Ok((got, body)) if *got == status && body.contains(text)) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{path}: expected {status} {text:?}, got {answer:?}\n{}",
                self.log()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The exit code after SIGTERM.
    pub async fn terminate(&mut self) -> Option<i32> {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.ended().await
    }

    pub async fn ended(&mut self) -> Option<i32> {
        timeout(EVENTUALLY, self.child.wait()).await.expect("it ends").unwrap().code()
    }

    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }
}

//! Debian's nginx, haproxy and squid, each with a configuration of its own.

use crate::{LONG, across::free_port};
use anyhow::{Context, Result, bail};
use moorline_e2e::process::Process;
use rcgen::{CertificateParams, KeyPair};
use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};

/// A program in the path. Dropping it ends it.
pub struct Middle {
    /// Where it listens on loopback.
    pub port: u16,
    process: Process,
    dir: PathBuf,
}

impl Middle {
    /// nginx that ends TLS with a certificate of its own and passes WebSockets on to the hub on `hub`. `idle`: seconds
    /// after which it ends a connection on which nothing moves.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn nginx(dir: &Path, hub: u16, idle: u32) -> Result<Self> {
        let (dir, port) = (fresh(dir, "nginx")?, free_port()?);
        certificate(&dir)?;
        let at = dir.display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log {at}/access.log;
  client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at}; uwsgi_temp_path {at}; scgi_temp_path {at};
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {at}/both.pem; ssl_certificate_key {at}/both.pem;
    location / {{
      proxy_pass https://127.0.0.1:{hub};
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_read_timeout {idle}s; proxy_send_timeout {idle}s;
    }}
  }}
}}
"
        );
        fs::write(dir.join("conf"), config)?;
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(&dir).arg("-c").arg(dir.join("conf")).arg("-e").arg(dir.join("error.log"));
        Self::run(command, dir, port).await
    }

    /// haproxy in the same place.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn haproxy(dir: &Path, hub: u16, idle: u32) -> Result<Self> {
        let (dir, port) = (fresh(dir, "haproxy")?, free_port()?);
        certificate(&dir)?;
        let at = dir.display();
        let config = format!(
            "global
  maxconn 64
defaults
  mode http
  timeout connect 5s
  timeout client {idle}s
  timeout server {idle}s
  timeout tunnel {idle}s
frontend front
  bind 127.0.0.1:{port} ssl crt {at}/both.pem
  default_backend hub
backend hub
  server hub 127.0.0.1:{hub} ssl verify none alpn http/1.1
"
        );
        fs::write(dir.join("conf"), config)?;
        let mut command = Command::new("/usr/sbin/haproxy");
        command.arg("-db").arg("-f").arg(dir.join("conf"));
        Self::run(command, dir, port).await
    }

    /// squid that lets `agent` with the password `s3cret` CONNECT to anywhere on loopback.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn squid(dir: &Path) -> Result<Self> {
        let (dir, port) = (fresh(dir, "squid")?, free_port()?);
        let at = dir.display();
        let hashed = Command::new("openssl").args(["passwd", "-apr1", "s3cret"]).output()?;
        fs::write(dir.join("users"), format!("agent:{}", String::from_utf8(hashed.stdout)?))?;
        let config = format!(
            "http_port 127.0.0.1:{port}
pid_filename {at}/pid
cache_log {at}/cache.log
access_log stdio:{at}/access.log
coredump_dir {at}
cache deny all
pinger_enable off
shutdown_lifetime 0 seconds
auth_param basic program /usr/lib/squid/basic_ncsa_auth {at}/users
auth_param basic children 1
auth_param basic realm netsim
acl known proxy_auth REQUIRED
acl CONNECT method CONNECT
http_access allow CONNECT known
http_access deny all
"
        );
        fs::write(dir.join("conf"), config)?;
        // squid gives up root's rights, and writes its logs without them.
        let open = |path: &Path| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777));
        for path in dir.ancestors().take(3) {
            let _ = open(path); // only as far up as the folder is ours
        }
        let mut command = Command::new("/usr/sbin/squid");
        command.arg("-N").arg("-f").arg(dir.join("conf"));
        Self::run(command, dir, port).await
    }

    async fn run(command: Command, dir: PathBuf, port: u16) -> Result<Self> {
        let process = Process::spawn(command, &dir.join("output"))?;
        let mut started = Self { port, process, dir };
        let listening = async {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
                if let Ok(code) = started.process.wait(Duration::ZERO) {
                    bail!("it ended with {code:?}: {}", started.process.log());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        let listening = timeout(LONG, listening).await.context("it does not listen");
        listening?.with_context(|| started.log("cache.log"))?;
        Ok(started)
    }

    /// One of its log files.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }
}

fn fresh(dir: &Path, name: &str) -> Result<PathBuf> {
    let dir = dir.join(name);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// `both.pem`: a certificate that nobody trusts, and its key.
fn certificate(dir: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let cert = CertificateParams::new(vec!["proxy.example".to_owned()])?.self_signed(&key)?;
    Ok(fs::write(dir.join("both.pem"), format!("{}{}", cert.pem(), key.serialize_pem()))?)
}

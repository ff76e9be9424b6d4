//! `moorline forward`: services, pods and hosts of a cluster at local ports.

mod line;
mod proxying;
mod spec;
mod tcp;
mod tunnel;
mod udp;

use crate::{failure::usage, target::HubArgs, text};
use anyhow::Context;
use spec::{Forward, Kind};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};
use tunnel::Tunnels;

/// `moorline forward`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moorline forward edge1 svc/monitoring/grafana 3000:80     localhost:3000 is Grafana
  moorline forward edge1 svc/grafana 3000:http -n monitoring
  moorline forward edge1 pod/shop/web-0 8080 svc/shop/api :80 tcp/10.0.0.5:5432
  moorline forward edge1 udp/svc/kube-system/kube-dns 5353:53
  moorline forward edge1 --socks 1080                       then: curl -x socks5h://localhost:1080 http://api.shop.svc/

PORT is the local port and the one in the cluster; LOCAL:REMOTE names both, :REMOTE lets the system choose the local
one. Names are resolved in the cluster. What may be reached is up to the hub's ServiceGrants (moorline grant service)
and the cluster's edge policy. A connection to the hub that breaks is made anew with the next one that comes in.")]
pub struct Args {
    /// The cluster
    cluster: String,
    /// What to forward: [udp/]svc/[NAMESPACE/]NAME PORT…, [udp/]pod/[NAMESPACE/]NAME PORT…, tcp/HOST:PORT, udp/HOST:PORT
    #[arg(value_name = "TARGET | PORT", required_unless_present = "socks")]
    words: Vec<String>,
    /// Namespace of services and pods that are named without one
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Also a SOCKS5 and HTTP CONNECT proxy into the cluster at this local port
    #[arg(long, value_name = "PORT")]
    socks: Option<u16>,
    /// Local address to listen on; can be repeated [default: 127.0.0.1 and ::1]
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    #[command(flatten)]
    hub: HubArgs,
}

/// Runs until it is interrupted.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(forward(args));
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

async fn forward(args: Args) -> anyhow::Result<()> {
    let forwards = spec::parse(&args.words, &args.namespace)
        .map_err(|e| usage(e.to_string(), "see the examples of: moorline forward --help"))?;
    let tunnels = Arc::new(Tunnels::new(args.hub.clone(), &args.cluster));
    // Told before anything listens: what nobody may reach must not look as if it could be.
    for forward in &forwards {
        tunnels.check(&forward.to).await?;
    }
    let locals = if args.address.is_empty() {
        vec![(IpAddr::V4(Ipv4Addr::LOCALHOST), true), (IpAddr::V6(Ipv6Addr::LOCALHOST), false)]
    } else {
        args.address.iter().map(|&address| (address, true)).collect()
    };
    let mut tasks = JoinSet::new();
    for Forward { to, kind, local } in &forwards {
        let mut port = *local;
        for &(address, needed) in &locals {
            let at = SocketAddr::new(address, port);
            let bound = match kind {
                Kind::Tcp => match TcpListener::bind(at).await {
                    Ok(listener) => {
                        let at = listener.local_addr()?;
                        tasks.spawn(tcp::serve(listener, tunnels.clone(), to.clone()));
                        Ok(at)
                    }
                    Err(e) => Err(e),
                },
                Kind::Udp => match UdpSocket::bind(at).await {
                    Ok(socket) => {
                        let at = socket.local_addr()?;
                        tasks.spawn(udp::serve(socket, tunnels.clone(), to.clone()));
                        Ok(at)
                    }
                    Err(e) => Err(e),
                },
            };
            match bound {
                Ok(at) => {
                    port = at.port(); // the same for both families
                    let proto = if *kind == Kind::Udp { " (UDP)" } else { "" };
                    text::print(&format!("Forwarding from {at} -> {to}{proto}\n"))?;
                }
                Err(e) if needed => return Err(taken(at, &e)),
                Err(_) => {} // no IPv6 here
            }
        }
    }
    if let Some(port) = args.socks {
        for &(address, needed) in &locals {
            let at = SocketAddr::new(address, port);
            match TcpListener::bind(at).await {
                Ok(listener) => {
                    let at = listener.local_addr()?;
                    tasks.spawn(proxying::serve(listener, tunnels.clone()));
                    text::print(&format!("SOCKS5 and HTTP CONNECT at {at} -> cluster {}\n", args.cluster))?;
                }
                Err(e) if needed => return Err(taken(at, &e)),
                Err(_) => {}
            }
        }
    }
    tasks.spawn(line::show(tunnels.clone(), args.cluster.clone(), forwards.len()));
    tokio::select! {
        stopped = tokio::signal::ctrl_c() => stopped.context("cannot wait for an interrupt"),
        () = terminated() => Ok(()),
        Some(Err(e)) = tasks.join_next() => Err(e.into()),
    }
}

fn taken(at: SocketAddr, e: &std::io::Error) -> anyhow::Error {
    crate::failure::advise(
        format!("cannot listen on {at}: {e}"),
        "choose another local port: LOCAL:REMOTE, or :REMOTE for any",
    )
}

#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut term) => {
            term.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending().await
}

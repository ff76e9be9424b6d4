//! Small requests at a steady pace, alone and beside what disturbs them: a command, which is begun and ended here.

use crate::{
    client::{Connection, Target, Version},
    process::rss_kib,
    table::quantile,
};
use anyhow::{Context, Result, ensure};
use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

/// Small requests in a second, and the connections that share them: far from full, so that what is measured is waiting
/// and not queues of our own.
const PACE: u32 = 100;
const CONNECTIONS: u32 = 4;
/// Where they come from: not from where a disturbance does, which has bounds of its own address.
const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Not measured at the beginning of a half, while everybody connects.
pub const WARM: Duration = Duration::from_secs(2);

/// Whose requests are measured, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Measured {
    /// The hub, `127.0.0.1:PORT`.
    pub hub: String,
    /// Its authority, PEM.
    pub ca: PathBuf,
    /// A token for the cluster `bench`.
    pub token: String,
    /// The hub's process.
    pub pid: u32,
    /// Measured seconds of each half.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Halves that are alone and disturbed, in turn: what is told is the round in the middle.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
}

/// What is measured beside any command.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    measured: Measured,
    /// What disturbs, with its arguments. It is ended after the half, if it goes on until then.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Half of a round.
pub struct Half {
    /// Milliseconds, the shortest first.
    pub took: Vec<f64>,
    /// What the hub held at most.
    pub most_mib: f64,
}

impl Half {
    fn print(&self, name: &str) {
        let (p50, p99) = (quantile(&self.took, 0.5), quantile(&self.took, 0.99));
        println!("{name:9} p50 {p50:7.2} ms  p99 {p99:7.2} ms  hub {:6.1} MiB", self.most_mib);
    }
}

/// What a disturbance comes to.
pub struct Cost {
    /// How many times as long the slowest in a hundred takes.
    pub times: f64,
    /// More memory of the hub's.
    pub more_mib: f64,
}

impl Measured {
    /// The hub, as who sends `headers`.
    pub fn target(&self, headers: Vec<(String, String)>) -> Arc<Target> {
        Arc::new(Target {
            name: "hub".to_owned(),
            address: self.hub.clone(),
            host: "127.0.0.1".to_owned(),
            prefix: String::new(),
            ca: self.ca.clone(),
            client: None,
            headers,
        })
    }

    async fn half(&self) -> Result<Half> {
        let from = Instant::now() + WARM;
        let until = from + Duration::from_secs(self.seconds);
        let user = self.target(vec![("authorization".to_owned(), format!("Bearer {}", self.token))]);
        let mut users = JoinSet::new();
        for _ in 0..CONNECTIONS {
            users.spawn(small(Arc::clone(&user), from, until));
        }
        let mut most_kib = rss_kib(self.pid)?;
        while Instant::now() < until {
            most_kib = rss_kib(self.pid)?.max(most_kib);
            sleep(Duration::from_millis(100)).await;
        }
        let mut took = Vec::new();
        while let Some(done) = users.join_next().await {
            took.extend(done??);
        }
        took.sort_by(f64::total_cmp);
        Ok(Half { took, most_mib: most_kib / 1024.0 })
    }

    /// Measures both halves of every round and prints them. `disturb` begins a disturbance, and `ended` is told of each.
    pub async fn cost(
        &self,
        disturb: impl Fn() -> Result<Child>,
        mut ended: impl AsyncFnMut(Child) -> Result<()>,
    ) -> Result<Cost> {
        ensure!(0 < self.seconds && 0 < self.rounds, "there is nothing to measure");
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let alone = self.half().await?;
            alone.print("alone");
            let child = disturb()?;
            let disturbed = self.half().await?;
            disturbed.print("disturbed");
            ended(child).await?;
            let times = quantile(&disturbed.took, 0.99) / quantile(&alone.took, 0.99);
            rounds.push(Cost { times, more_mib: disturbed.most_mib - alone.most_mib });
        }
        rounds.sort_by(|a, b| a.times.total_cmp(&b.times));
        let middle = rounds.len() / 2;
        Ok(rounds.swap_remove(middle))
    }
}

async fn small(target: Arc<Target>, from: Instant, until: Instant) -> Result<Vec<f64>> {
    let mut connection = Connection::open_from(&target, Version::One, Some(FROM)).await?;
    let mut took = Vec::new();
    let mut tick = interval(Duration::from_secs(1) * CONNECTIONS / PACE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while Instant::now() < until {
        tick.tick().await;
        let begun = Instant::now();
        connection.get("/k8s/clusters/bench/api/v1/namespaces/default").await?;
        if from <= begun {
            took.push(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(took)
}

/// Measures, with a command of anybody's.
pub async fn run(args: Args) -> Result<()> {
    let (program, words) = args.command.split_first().context("no command")?;
    let disturb = || {
        let mut command = Command::new("nice");
        command.args(["-n", "10", program]).args(words).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        command.spawn().with_context(|| format!("{program} does not begin"))
    };
    let ended = async |mut child: Child| {
        if child.try_wait()?.is_some() {
            println!("          {program} was at its end before: what it had was taken from it");
            return Ok(());
        }
        child.kill().await.context("it does not end")
    };
    let cost = args.measured.cost(disturb, ended).await?;
    println!("{program}: p99 x {:.2}, {:.1} MiB more", cost.times, cost.more_mib);
    Ok(())
}

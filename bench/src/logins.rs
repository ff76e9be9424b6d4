//! Small requests at a steady pace, alone and beside a flood of wrong logins. The flood is a process of its own that steps
//! back behind the others: it stands for strangers, whose work is not done on the hub's machine.

use crate::{
    client::{Connection, Target, Version},
    process::rss_kib,
    table::quantile,
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    process::Command,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, interval_at, sleep},
};

/// Small requests in a second, and the connections that share them: far from full, so that what is measured is waiting
/// and not queues of our own.
const PACE: u32 = 100;
const CONNECTIONS: u32 = 4;
/// Addresses that the flood comes from.
const ADDRESSES: u8 = 200;
/// Not measured at the beginning of a half, while the flood and everybody else connect.
const WARM: Duration = Duration::from_secs(2);
/// What one hash takes, and the connections of the flood, in MiB.
const HASH: f64 = 19.0;
const FLOOD: f64 = 24.0;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The hub, `127.0.0.1:PORT`.
    hub: String,
    /// Its authority, PEM.
    ca: PathBuf,
    /// A token for the cluster `bench`.
    token: String,
    /// The hub's process.
    pid: u32,
    /// Wrong logins in a second.
    #[arg(long, default_value_t = 1000)]
    logins: u32,
    /// Measured seconds of each half.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Quiet and flooded halves, in turn: what is told is the round in the middle.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Password checks that the hub makes at a time.
    #[arg(long, default_value_t = (std::thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, 4))]
    checks: usize,
    /// Nothing but the flood; how often which status came, as JSON.
    #[arg(long, hide = true)]
    flood: bool,
}

impl Args {
    fn target(&self, headers: Vec<(String, String)>) -> Arc<Target> {
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
}

type Answers = Arc<Mutex<BTreeMap<u16, u64>>>;

struct Half {
    /// Milliseconds, the shortest first.
    took: Vec<f64>,
    most_mib: f64,
    answers: BTreeMap<u16, u64>,
}

async fn small(target: Arc<Target>, from: Instant, until: Instant) -> Result<Vec<f64>> {
    let mut connection = Connection::open(&target, Version::One).await?;
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

async fn flood(target: Arc<Target>, number: u8, each: Duration, until: Instant, answers: Answers) {
    let from = IpAddr::V4(Ipv4Addr::new(127, 0, 1, number + 1));
    let mut tick = interval_at(Instant::now() + each * u32::from(number) / u32::from(ADDRESSES), each);
    let (mut connection, mut n) = (None, 0);
    while Instant::now() < until {
        tick.tick().await;
        n += 1;
        let asked = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => Connection::open_from(&target, Version::One, Some(from)).await?,
            };
            let user = format!("user-{number}-{}", n % 50);
            let body = serde_json::json!({ "username": user, "password": format!("wrong {n}") }).to_string();
            let body = Full::new(Bytes::from(body)).boxed_unsync();
            let answer = open.send("POST", "/auth/login", Some("application/json"), body).await?;
            let code = answer.status().as_u16();
            answer.into_body().collect().await?;
            anyhow::Ok((open, code))
        };
        // Connections of strangers end after a while.
        let code = match asked.await {
            Ok((open, code)) => {
                connection = Some(open);
                code
            }
            Err(_) => 0,
        };
        *answers.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }
}

/// Floods from all addresses, and says what came of it.
async fn strangers(args: &Args) -> Result<()> {
    let (nobody, answers, mut all) = (args.target(Vec::new()), Answers::default(), JoinSet::new());
    let until = Instant::now() + WARM + Duration::from_secs(args.seconds);
    let each = Duration::from_secs(1) * u32::from(ADDRESSES) / args.logins;
    for number in 0..ADDRESSES {
        all.spawn(flood(Arc::clone(&nobody), number, each, until, Arc::clone(&answers)));
    }
    all.join_all().await;
    let answers = std::mem::take(&mut *answers.lock().unwrap_or_else(PoisonError::into_inner));
    println!("{}", serde_json::to_string(&answers)?);
    Ok(())
}

async fn half(args: &Args, flooded: bool) -> Result<Half> {
    let strangers = flooded.then(|| {
        let mut command = Command::new("nice");
        command.args(["-n", "10"]).arg(std::env::current_exe()?).args(["logins", "--flood", &args.hub]).arg(&args.ca);
        command.args([&args.token, &args.pid.to_string(), "--logins", &args.logins.to_string()]);
        command.args(["--seconds", &args.seconds.to_string()]).stdout(Stdio::piped()).kill_on_drop(true);
        command.spawn().context("the flood does not begin")
    });
    let strangers = strangers.transpose()?;
    let from = Instant::now() + WARM;
    let until = from + Duration::from_secs(args.seconds);
    let user = args.target(vec![("authorization".to_owned(), format!("Bearer {}", args.token))]);
    let mut users = JoinSet::new();
    for _ in 0..CONNECTIONS {
        users.spawn(small(Arc::clone(&user), from, until));
    }
    let mut most_kib = rss_kib(args.pid)?;
    while Instant::now() < until {
        most_kib = rss_kib(args.pid)?.max(most_kib);
        sleep(Duration::from_millis(100)).await;
    }
    let mut took = Vec::new();
    while let Some(done) = users.join_next().await {
        took.extend(done??);
    }
    took.sort_by(f64::total_cmp);
    let answers = match strangers {
        None => BTreeMap::new(),
        Some(flood) => serde_json::from_slice(&flood.wait_with_output().await?.stdout).context("the flood failed")?,
    };
    Ok(Half { took, most_mib: most_kib / 1024.0, answers })
}

/// Measures both halves and prints them.
pub async fn run(args: Args) -> Result<()> {
    ensure!(0 < args.logins && 0 < args.seconds && 0 < args.rounds, "there is nothing to measure");
    if args.flood {
        return strangers(&args).await;
    }
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        let (alone, flooded) = (half(&args, false).await?, half(&args, true).await?);
        for (name, half) in [("alone", &alone), ("flooded", &flooded)] {
            let (p50, p99) = (quantile(&half.took, 0.5), quantile(&half.took, 0.99));
            println!(
                "{name:8} p50 {p50:7.2} ms  p99 {p99:7.2} ms  hub {:6.1} MiB  answers to logins {:?}",
                half.most_mib, half.answers
            );
        }
        let times = quantile(&flooded.took, 0.99) / quantile(&alone.took, 0.99);
        rounds.push((times, flooded.most_mib - alone.most_mib, flooded.answers.values().sum::<u64>()));
    }
    rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (times, more, answers) = rounds[rounds.len() / 2];
    let (done, bound) = (answers / (args.seconds + WARM.as_secs()), args.checks as f64 * HASH + FLOOD);
    println!(
        "{done} wrong logins/s: p99 x {times:.2} (goal 2), {more:.1} MiB more (goal {bound}: hashes, and connections)"
    );
    Ok(())
}

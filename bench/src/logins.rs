//! What a flood of wrong logins does to everybody else. The flood is a process of its own that steps back behind the others:
//! it stands for strangers, whose work is not done on the hub's machine.

use crate::{
    beside::{Measured, WARM},
    client::{Connection, Target, Version},
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, interval_at},
};

/// Addresses that the flood comes from.
const ADDRESSES: u8 = 200;
/// What one hash takes, and the connections of the flood, in MiB.
const HASH: f64 = 19.0;
const FLOOD: f64 = 24.0;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    measured: Measured,
    /// Wrong logins in a second.
    #[arg(long, default_value_t = 1000)]
    logins: u32,
    /// Password checks that the hub makes at a time.
    #[arg(long, default_value_t = (std::thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, 4))]
    checks: usize,
    /// Nothing but the flood; how often which status came, as JSON.
    #[arg(long, hide = true)]
    flood: bool,
}

type Answers = Arc<Mutex<BTreeMap<u16, u64>>>;

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
    let (nobody, answers, mut all) = (args.measured.target(Vec::new()), Answers::default(), JoinSet::new());
    let until = Instant::now() + WARM + Duration::from_secs(args.measured.seconds);
    let each = Duration::from_secs(1) * u32::from(ADDRESSES) / args.logins;
    for number in 0..ADDRESSES {
        all.spawn(flood(Arc::clone(&nobody), number, each, until, Arc::clone(&answers)));
    }
    all.join_all().await;
    let answers = std::mem::take(&mut *answers.lock().unwrap_or_else(PoisonError::into_inner));
    println!("{}", serde_json::to_string(&answers)?);
    Ok(())
}

impl Args {
    fn begin(&self) -> Result<Child> {
        let (to, mut command) = (&self.measured, Command::new("nice"));
        command.args(["-n", "10"]).arg(std::env::current_exe()?).args(["logins", "--flood", &to.hub]).arg(&to.ca);
        command.args([&to.token, &to.pid.to_string(), "--logins", &self.logins.to_string()]);
        command.args(["--seconds", &to.seconds.to_string()]).stdout(Stdio::piped()).kill_on_drop(true);
        command.spawn().context("the flood does not begin")
    }
}

/// Measures both halves and prints them.
pub async fn run(args: Args) -> Result<()> {
    ensure!(0 < args.logins, "there is nothing to measure");
    if args.flood {
        return strangers(&args).await;
    }
    let mut all = 0;
    let ended = async |flood: Child| {
        let told = flood.wait_with_output().await?.stdout;
        let answers: BTreeMap<u16, u64> = serde_json::from_slice(&told).context("the flood failed")?;
        println!("          answers to logins {answers:?}");
        all += answers.values().sum::<u64>();
        Ok(())
    };
    let cost = args.measured.cost(|| args.begin(), ended).await?;
    let seconds = u64::from(args.measured.rounds) * (args.measured.seconds + WARM.as_secs());
    let (done, bound) = (all / seconds, args.checks as f64 * HASH + FLOOD);
    println!(
        "{done} wrong logins/s: p99 x {:.2} (goal 2), {:.1} MiB more (goal {bound}: hashes, and connections)",
        cost.times, cost.more_mib
    );
    Ok(())
}

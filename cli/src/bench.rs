//! `moorline bench`: what the tunnel to a cluster can carry, measured between hub and agent.

use crate::{
    client::Client,
    output::{DataArgs, data},
    resource::Resource,
    target::HubArgs,
    text,
};
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// Phases of a measurement.
const PHASES: u64 = 3;

/// `moorline bench`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moorline bench edge1
  moorline bench edge1 --seconds 10 --streams 16 -o json

Hub and agent alone take part: the agent sends back what the hub sends it, so that what is measured goes both ways at
once. First small messages alone, then beside one full stream, then beside many: what the last two add to the round trip
is what people at work notice of a copy under way. Only administrators measure, one at a time.")]
pub struct Args {
    /// The cluster
    cluster: String,
    /// Length of each of the three phases, up to 30 seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=30))]
    seconds: u64,
    /// Streams of the last phase, up to 64
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=64))]
    streams: u64,
    #[command(flatten)]
    form: DataArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline bench`
pub async fn run(args: Args) -> anyhow::Result<()> {
    // As patient as always, once the measurement itself is over.
    let patience = args.hub.request_timeout + Duration::from_secs(PHASES * args.seconds);
    let client = Client::new(&args.hub.known()?, patience)?;
    if args.form.form.is_none() {
        text::say(&format!("measuring {} for {} s", args.cluster, PHASES * args.seconds));
    }
    let plan = json!({ "seconds": args.seconds, "streams": args.streams });
    let path = format!("{}/bench", Resource::Cluster.path(&args.cluster));
    let report = client.call(Method::POST, &path, Some(&plan)).await?;
    Ok(text::print(&match args.form.form {
        Some(form) => data(&report, form)?,
        None => page(&args.cluster, &report),
    })?)
}

/// One page for people.
fn page(cluster: &str, report: &Value) -> String {
    let word = |key: &str| text::clean(report[key].as_str().unwrap_or_default());
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let ms = |value: &Value| format!("{:.2} ms", number(value));
    let mut out = format!(
        "{} over {} to agent {}, round trip {}\n\n{:<20}{:>16}{:>10}{:>12}{:>12}{:>12}\n",
        text::clean(cluster),
        word("carrier"),
        word("agent"),
        ms(&report["rttMs"]),
        "",
        "each way",
        "small",
        "p50",
        "p99",
        "longest"
    );
    for phase in report["phases"].as_array().into_iter().flatten() {
        let what = match phase["streams"].as_u64().unwrap_or_default() {
            0 => "idle".to_owned(),
            1 => "1 full stream".to_owned(),
            n => format!("{n} full streams"),
        };
        let rate = number(&phase["mbitsEachWay"]);
        let rate = if rate == 0.0 { "-".to_owned() } else { format!("{rate:.1} Mbit/s") };
        let small = &phase["small"];
        out.push_str(&format!(
            "{what:<20}{rate:>16}{:>10}{:>12}{:>12}{:>12}\n",
            small["count"].to_string(),
            ms(&small["p50Ms"]),
            ms(&small["p99Ms"]),
            ms(&small["maxMs"])
        ));
    }
    let packets = &report["packets"];
    if packets.is_object() {
        let percent = number(&packets["lostPercent"]);
        out.push_str(&format!(
            "\nLost on the way to the agent: {} of {} packets, {percent:.2} %\n",
            packets["lost"], packets["sent"]
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_fits_one_page() {
        let small = json!({ "count": 812, "p50Ms": 0.41, "p99Ms": 1.2, "maxMs": 3.0 });
        let report = json!({
            "agent": "edge1.a1", "carrier": "quic", "rttMs": 0.3, "packets": { "sent": 1000, "lost": 10, "lostPercent": 1.0 },
            "phases": [{ "streams": 0, "mbitsEachWay": 0.0, "small": small }, { "streams": 8, "mbitsEachWay": 93.25, "small": small }],
        });
        let page = page("edge1", &report);
        assert!(page.starts_with("edge1 over quic to agent edge1.a1, round trip 0.30 ms\n"), "{page}");
        let line = |start: &str| {
            page.lines().find(|line| line.starts_with(start)).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("idle"), "idle - 812 0.41 ms 1.20 ms 3.00 ms");
        assert_eq!(line("8 full"), "8 full streams 93.2 Mbit/s 812 0.41 ms 1.20 ms 3.00 ms");
        assert!(page.ends_with("10 of 1000 packets, 1.00 %\n"), "{page}");
    }
}

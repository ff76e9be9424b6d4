//! A hub that crashes under its fleet, and comes back to it.

use moorline_agent::Preference;
use moorline_netsim::fleet::{Fleet, Return};
use std::time::Duration;

/// A fleet for a machine that does other things too.
const FEW: usize = 120;
/// How long the hub is gone.
const DEAD: Duration = Duration::from_secs(2);

async fn comes_back(size: usize, carrier: Preference) -> Return {
    let mut fleet = Fleet::of(size, carrier).await.unwrap();
    let quiet = fleet.requests(50).await.unwrap();
    let back = fleet.crash(DEAD, Duration::from_secs(60)).await.unwrap();
    let mut requests = back.requests.clone();
    requests.sort_unstable();
    let at = |all: &[Duration], share: f64| all.get((all.len().saturating_sub(1) as f64 * share) as usize).copied();
    let busiest = back.each_second.iter().max().copied().unwrap_or_default();
    println!(
        "{size} agents ({carrier:?}) were back {:?} after the hub listened; each second {:?}, the busiest {:.0} %; requests \
         p50 {:?} p99 {:?} meanwhile, {:?} and {:?} before",
        back.took,
        back.each_second,
        100.0 * busiest as f64 / size as f64,
        at(&requests, 0.5),
        at(&requests, 0.99),
        at(&quiet, 0.5),
        at(&quiet, 0.99),
    );
    // Most came once: some were let in, and gave up a hub that was slow to say so.
    let welcomed = back.each_second.iter().sum::<usize>();
    assert!((size..2 * size).contains(&welcomed), "{welcomed} were let in");
    back
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_crashed_has_its_fleet_back() {
    let back = comes_back(FEW, Preference::Auto).await;
    assert!(back.took < Duration::from_secs(30), "{:?}", back.took);
    let busiest = back.each_second.iter().max().copied().unwrap_or_default();
    // On a machine that does other things beside, the hub lets many in late and at once; how evenly they come without
    // that is what the long one prints.
    assert!(busiest < FEW || Duration::from_secs(1) < back.blind, "{back:?}");
}

/// Two thousand, for a machine that has nothing else to do: in `make test-long`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn a_hub_that_crashed_has_two_thousand_back() {
    for carrier in [Preference::Tls, Preference::Quic] {
        comes_back(2000, carrier).await;
    }
}

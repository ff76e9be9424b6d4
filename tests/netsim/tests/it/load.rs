//! Much at once, and for long. Short here; the long ones of the same are in `make test-long`.

use crate::faults::{each, ms, secs};
use moorline_netsim::{across::Across, crowd::Crowd, emulator::Road};
use std::time::{Duration, Instant};
use tokio::{io::AsyncReadExt, task::JoinSet, time::sleep};

/// How even shares are: 1 if all are the same, 1/n if one has everything (Jain, Chiu and Hawe, DEC-TR-301).
fn jain(shares: &[f64]) -> f64 {
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    sum * sum / (shares.len() as f64 * squares)
}

/// Bytes that each of so many downloads gets within `long`, once all have begun.
async fn shares(scene: &Across, count: usize, long: Duration) -> Vec<f64> {
    let mut opening = JoinSet::new();
    for _ in 0..count {
        let admin = scene.admin.with_little_room();
        opening.spawn(async move { admin.begin(&format!("/bytes/{}", 1u64 << 40)).await.unwrap() });
    }
    let answers = opening.join_all().await;
    let (from, mut reading) = (Instant::now() + secs(2), JoinSet::new());
    for (code, mut answer) in answers {
        assert_eq!(code, 200);
        reading.spawn(async move {
            let (mut space, mut got) = (vec![0; 16 << 10], 0);
            while Instant::now() < from + long {
                let n = answer.read(&mut space).await.unwrap();
                assert!(n > 0, "a download ended");
                got += if from <= Instant::now() { n } else { 0 };
            }
            got as f64
        });
    }
    reading.join_all().await
}

async fn bulk(size: u64, streams: usize, long: Duration, least: f64) {
    each(move |carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        scene.admin.down(size).await.unwrap();
        scene.admin.up(size).await.unwrap();
        scene.link.becomes(Road::clear().delay(ms(5)).rate(20_000_000, 128 << 10));
        // Shares that are uneven by our doing are so each time; a busy moment of the machine is not.
        let mut even: f64 = 0.0;
        for _ in 0..3 {
            even = even.max(jain(&shares(&scene, streams, long).await));
            println!("{carrier}: {size} bytes are right both ways; {streams} streams at once: Jain index {even:.3}");
            if least <= even {
                return;
            }
        }
        panic!("{carrier}: {even}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l04_bulk_is_exact_both_ways_and_streams_have_even_shares() {
    bulk(16 << 20, 10, secs(8), 0.9).await; // too short to be quite even: windows are of up to 2 MiB
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn l04_a_gibibyte_both_ways_and_a_hundred_streams() {
    bulk(1 << 30, 100, secs(120), 0.95).await;
}

/// Bytes a second by which a line through these, one each second, rises.
fn slope(memory: &[u64]) -> f64 {
    let n = memory.len() as f64;
    let (x, y) = ((n - 1.0) / 2.0, memory.iter().sum::<u64>() as f64 / n);
    let over = memory.iter().enumerate().map(|(at, m)| (at as f64 - x) * (*m as f64 - y)).sum::<f64>();
    over / (0..memory.len()).map(|at| (at as f64 - x).powi(2)).sum::<f64>()
}

/// Agents that come and go: MiB a minute by which the hub grows once it has run for `warm`.
async fn churn(each_second: u32, warm: Duration, long: Duration) -> f64 {
    let mut crowd = Crowd::start().await.unwrap();
    crowd.join_whole(100).await.unwrap();
    crowd.churn(each_second, secs(2)).await.unwrap(); // what is made once is made
    let gone = async || {
        let until = Instant::now() + secs(60);
        while crowd.sessions().await.unwrap() > 0 {
            assert!(Instant::now() < until, "{} sessions stay", crowd.sessions().await.unwrap());
            sleep(ms(100)).await;
        }
        let mut least = usize::MAX;
        for _ in 0..30 {
            least = least.min(crowd.files().unwrap());
            sleep(ms(100)).await;
        }
        least
    };
    let before = gone().await;
    let memory = crowd.churn(each_second, warm + long).await.unwrap();
    let after = gone().await;
    let grows = slope(&memory[warm.as_secs() as usize..]) * 60.0 / f64::from(1 << 20);
    println!(
        "{each_second} agents a second: {:.1} MiB at first, {:.1} at last, {grows:+.2} MiB a minute; {before} files \
         before, {after} after",
        memory[0] as f64 / f64::from(1 << 20),
        memory[memory.len() - 1] as f64 / f64::from(1 << 20),
    );
    assert!(after <= before + 4, "{before} files were open before, {after} are now");
    grows
}

#[tokio::test(flavor = "multi_thread")]
async fn l07_agents_that_come_and_go_leave_nothing() {
    churn(20, Duration::ZERO, secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn l07_a_hundred_agents_a_second_for_ten_minutes() {
    let grows = churn(100, secs(120), secs(480)).await;
    assert!(grows < 1.0, "{grows} MiB a minute");
}

//! Every input of the corpus, and neighbours of each.
#![allow(missing_docs, clippy::unwrap_used)]

use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Inputs per target that are neighbours of those in the corpus.
const NEIGHBOURS: usize = 1500;
const SEED: u64 = 2026;

/// `data`, a little changed: bytes flipped, set, repeated, left out, or the tail of another.
fn bend(data: &[u8], other: &[u8], dice: &mut StdRng) -> Vec<u8> {
    let mut bent = data.to_vec();
    for _ in 0..dice.random_range(1..4) {
        let at = dice.random_range(0..=bent.len());
        match dice.random_range(0..6) {
            0 if at < bent.len() => bent[at] ^= 1 << dice.random_range(0..8),
            1 if at < bent.len() => bent[at] = [0, 1, 0x7f, 0x80, 0xff, b'\n'][dice.random_range(0..6)],
            2 => bent.insert(at, dice.random()),
            3 => bent.truncate(at),
            4 => {
                let end = (at + dice.random_range(1..32)).min(bent.len());
                let again = bent[at..end].to_vec();
                bent.splice(at..at, again);
            }
            _ => {
                bent.truncate(at);
                bent.extend_from_slice(&other[dice.random_range(0..=other.len())..]);
            }
        }
    }
    bent
}

fn replay(name: &str) {
    let target = moorline_fuzz::target(name).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    let inputs: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    for (file, input) in files.iter().zip(&inputs) {
        assert!(catch_unwind(|| target(input)).is_ok(), "{}", file.display());
    }
    let mut dice = StdRng::seed_from_u64(SEED);
    for number in 0..NEIGHBOURS {
        let (one, other) = (dice.random_range(0..inputs.len()), dice.random_range(0..inputs.len()));
        let input = bend(&inputs[one], &inputs[other], &mut dice);
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let kept = folder.join(format!("broke-{SEED}-{number}"));
            fs::write(&kept, &input).unwrap();
            panic!("broken by {} (kept, so that it stays a test)", kept.display());
        }
    }
}

#[test]
fn z01_headers_verdicts_and_control_messages() {
    replay("wire");
}
#[test]
fn z01_frames_of_the_mux() {
    replay("frames");
}
#[test]
fn z02_the_session_as_a_list_of_calls() {
    replay("calls");
}
#[test]
fn z13_websocket_frames_in_both_roles() {
    replay("websocket");
}
#[test]
fn z05_requests_in_front_of_the_http_library() {
    replay("http");
}
#[test]
fn z08_tokens_and_bundles() {
    replay("secrets");
}
#[test]
fn z10_a_stores_file_that_was_bent() {
    replay("store");
}
#[test]
fn z11_what_passes_between_hub_and_plugins() {
    replay("plugins");
}

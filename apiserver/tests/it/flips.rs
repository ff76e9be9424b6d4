//! A file that is not as it was written.

use super::*;
use base64::{Engine, engine::general_purpose::STANDARD};
use moorline_apiserver::{Batch, Expect, StoreKey};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::path::Path;

/// How many files are bent, of each kind of store. Their bits are chosen anew in each run, from a seed that is printed.
const FLIPS: usize = 150;

fn open(path: &Path, sealed: bool) -> Result<Store, moorline_apiserver::OpenError> {
    match sealed {
        true => Store::open_sealed(path, StoreKey::read(&STANDARD.encode([7; 32])).unwrap(), &limits()),
        false => Store::open(path, &limits()),
    }
}

fn content(store: &Store) -> Vec<String> {
    let objects =
        store.list("t/").1.into_iter().map(|(key, entry)| format!("{key} {} {}", entry.revision, entry.value));
    let records = (0..60).map(|i| format!("{:?}", store.private(&format!("t/things/{i}/hash"))));
    objects.chain(records).chain([store.revision().to_string()]).collect()
}

/// One bit, a sector of noise, or a lost end: what is opened then is what was there, or nothing is opened; and what was
/// refused once is refused again.
#[tokio::test]
async fn p05_z10_a_file_that_was_bent_is_seen_or_reads_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let seed = std::env::var("MOORLINE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("MOORLINE_SEED={seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    for sealed in [false, true] {
        let path = dir.path().join(format!("whole-{sealed}"));
        let store = open(&path, sealed).unwrap();
        for i in 0..60 {
            let object = json!({ "metadata": {}, "spec": "s".repeat(100 + i * 20) });
            let private = vec![(format!("t/things/{i}/hash"), Some(Bytes::from(vec![b'h'; 64])))];
            let object = Some((format!("t/things/{i}"), Expect::Absent, Some(object)));
            store.commit(Batch { object, private }).await.unwrap();
        }
        let whole = content(&store);
        store.close();
        let bytes = std::fs::read(&path).unwrap();
        let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        let (mut seen, mut harmless) = (0, 0);
        for round in 0..FLIPS {
            let mut bent = bytes.clone();
            let at = used[dice.random_range(0..used.len())];
            match round % 10 {
                9 => bent.truncate(at.max(1)),
                8 => dice.fill(&mut bent[at..(at + 512).min(bytes.len())]),
                _ => bent[at] ^= 1 << dice.random_range(0..8),
            }
            let path = dir.path().join("bent");
            std::fs::write(&path, &bent).unwrap();
            match open(&path, sealed) {
                Err(_) => {
                    seen += 1;
                    assert!(open(&path, sealed).is_err(), "round {round}, byte {at}: refused once, and opened then");
                }
                Ok(store) => {
                    harmless += 1;
                    assert!(content(&store) == whole, "round {round}, byte {at}, sealed {sealed}: it reads as another");
                    store.close();
                }
            }
        }
        assert!(seen > FLIPS / 4, "of {FLIPS} bent files {seen} were seen and {harmless} read as they were");
    }
}

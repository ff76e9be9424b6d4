//! A file that is not as it was written.

use super::*;
use base64::{Engine, engine::general_purpose::STANDARD};
use moorline_apiserver::{Batch, Expect, StoreKey};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::path::Path;

/// Single bits that are flipped in each kind of store: a thousand in both. Which ones is chosen anew in each run, from a
/// seed that is printed.
const FLIPS: u32 = 500;
/// Sectors that turn to noise, and as many ends that are lost.
const WOUNDS: u32 = 60;

/// What happens to a file while nobody looks.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Bit,
    Sector,
    End,
}

impl Harm {
    fn all() -> impl Iterator<Item = Self> {
        let some = |harm, count| std::iter::repeat_n(harm, count as usize);
        some(Self::Bit, FLIPS).chain(some(Self::Sector, WOUNDS)).chain(some(Self::End, WOUNDS))
    }

    fn strike(self, bytes: &mut Vec<u8>, at: usize, dice: &mut StdRng) {
        match self {
            Self::Bit => bytes[at] ^= 1 << dice.random_range(0..8),
            Self::Sector => {
                let end = (at + 512).min(bytes.len());
                dice.fill(&mut bytes[at..end]);
            }
            Self::End => bytes.truncate(at.max(1)),
        }
    }
}

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
async fn bend(sealed: bool) {
    // In memory where there is such a folder: thousands of opens sync, and no power goes here.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let seed = std::env::var("MOORLINE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("MOORLINE_SEED={seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let path = dir.path().join("whole");
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
    for harm in Harm::all() {
        let mut bent = bytes.clone();
        let at = used[dice.random_range(0..used.len())];
        harm.strike(&mut bent, at, &mut dice);
        let path = dir.path().join("bent");
        std::fs::write(&path, &bent).unwrap();
        match open(&path, sealed) {
            Err(_) => {
                seen += 1;
                assert!(open(&path, sealed).is_err(), "{harm:?} at {at}: refused once, and opened then");
            }
            Ok(store) => {
                harmless += 1;
                assert!(content(&store) == whole, "{harm:?} at {at}, sealed {sealed}: it reads as another");
                store.close();
            }
        }
    }
    eprintln!("{seen} were seen, {harmless} read as they were");
    assert!(seen > FLIPS / 4, "{seen} were seen and {harmless} read as they were");
}

#[tokio::test]
async fn p05_z10_a_file_that_was_bent_is_seen_or_reads_as_it_was() {
    bend(false).await;
}

#[tokio::test]
async fn p05_z10_a_sealed_file_that_was_bent_is_seen_or_reads_as_it_was() {
    bend(true).await;
}

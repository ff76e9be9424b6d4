//! Bounds of what providers can make the hub do and hold.

use std::time::Duration;

/// Longest time for one login at a provider, all its steps together.
pub const LOGIN: Duration = Duration::from_secs(15);
/// Longest time to a connection, its TLS included.
pub const CONNECT: Duration = Duration::from_secs(5);
/// Logins under way at one provider; more get 503.
pub const AT_ONCE: usize = 32;
/// Largest answer taken from a provider, in bytes.
pub const ANSWER: usize = 1 << 20;
/// Groups of one user. What is over is left out, and the log says so.
pub const GROUPS: usize = 2000;
/// Longest name of a group, in bytes.
pub const GROUP_NAME: usize = 256;
/// How deep groups may lie within groups, where the directory does not follow them itself.
pub const NESTING: usize = 16;
/// Groups asked about in one search, where groups within groups are followed step by step.
pub const GROUPS_ASKED: usize = 50;
/// Entries in one page of a search. Active Directory gives 1000 at most.
pub const PAGE: i32 = 500;
/// Longest user name, in bytes.
pub const USER_NAME: usize = 256;
/// Longest password, in bytes.
pub const PASSWORD: usize = 1024;
/// How long a provider's own description is good.
pub const DISCOVERY: Duration = Duration::from_secs(3600);
/// How long keys are good, unless a token names one that is not among them.
pub const KEYS: Duration = Duration::from_secs(3600);
/// Shortest time between two fetches for tokens whose key is not known: made-up ones must not make the hub ask.
pub const KEYS_PAUSE: Duration = Duration::from_secs(10);
/// How far clocks may be apart.
pub const LEEWAY: Duration = Duration::from_secs(60);
/// Pages of a list that are followed.
pub const PAGES: usize = 10;

//! Every bound of the agent, by name.

use std::time::Duration;

/// Streams served at once, over all sessions of this agent. One more is refused as busy; the session lives on.
pub const MAX_STREAMS: usize = 4096;
/// Refusals under way at once; beyond, a stream is reset without a word.
pub const MAX_REFUSALS: usize = 64;

/// Connections to the API server.
pub const UPSTREAM_CONNECTIONS: usize = 32;
/// Requests in flight on one of them. Kubernetes itself permits 100 on a connection.
pub const UPSTREAM_IN_FLIGHT: usize = 100;
/// Bytes that one answer may have waiting in the agent while its reader is slow.
pub const UPSTREAM_STREAM_WINDOW: u32 = 512 << 10;
/// Window of a connection: every stream's window fits, so a stalled reader takes nothing from its siblings.
pub const UPSTREAM_CONNECTION_WINDOW: u32 = UPSTREAM_STREAM_WINDOW * UPSTREAM_IN_FLIGHT as u32;
/// Bytes of one request's body that may wait to be sent.
pub const UPSTREAM_SEND_BUFFER: usize = 256 << 10;
/// Largest head of an answer, in bytes: Kubernetes' answers are far below.
pub const UPSTREAM_HEAD: usize = 64 << 10;
/// Longest wait for the API server to take a connection, TLS included.
pub const UPSTREAM_CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for a free place on a connection.
pub const UPSTREAM_WAIT: Duration = Duration::from_secs(5);
/// A connection beyond the first that served nothing for this long is closed.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(60);
/// How often a connection to the API server is probed.
pub const UPSTREAM_PING: Duration = Duration::from_secs(15);
/// A connection whose probe is not answered in this time is dead.
pub const UPSTREAM_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How often credential, authority and address of the API server are read again. Kubernetes asks for once a minute.
pub const CREDENTIAL_REFRESH: Duration = Duration::from_secs(30);
/// Largest file that is read: token, certificate, kubeconfig, policy, state.
pub const MAX_FILE: u64 = 4 << 20;

/// Longest SubjectAccessReview or other own call to the API server.
pub const OWN_CALL: Duration = Duration::from_secs(10);
/// Largest answer to an own call.
pub const OWN_ANSWER: usize = 2 << 20;
/// Largest bundle that is kept in a Secret, sealed, in bytes: Kubernetes takes 1 MiB of data (`MaxSecretSize`).
pub const SECRET_BUNDLE: usize = (1 << 20) - (4 << 10);

/// Longest join call, from the dial to the end of the answer.
pub const JOIN: Duration = Duration::from_secs(30);
/// Largest answer to a join.
pub const JOIN_ANSWER: usize = 256 << 10;
/// Longest pause between two attempts to join.
pub const JOIN_PAUSE: Duration = Duration::from_secs(30);
/// Pause of a node agent whose session the hub ended because others stand by.
pub const PARKED: Duration = Duration::from_secs(30);
/// Longest pause between two attempts to read or write the state in its Secret.
pub const SECRET_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Tries to write a Secret that other agents write too. Each one that fails means that another has written.
pub const SECRET_TRIES: u32 = 8;
/// Shortest pause after a failure that time alone seldom heals.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// Authorities of the hub that are remembered after they are gone.
pub const FORMER_PINS: usize = 16;
/// Dials in a row whose TLS failed before it is looked whether the hub has another authority now.
pub const SHUT_OUT: u32 = 3;

/// How long a carrier may try before the next one is tried as well.
pub const HEAD_START: Duration = Duration::from_millis(300);
/// How often it is looked whether a session still answers.
pub const PROBE: Duration = Duration::from_secs(1);
/// A question for a sign of life that is not answered in this time puts the session's carrier in doubt: another one is
/// dialled beside it.
pub const DOUBT: Duration = Duration::from_secs(5);
/// How long streams may stay on a session whose place one on another carrier took.
pub const MOVED_GRACE: Duration = Duration::from_secs(24 * 3600);
/// How long open streams may take to end when the agent goes away or a session is replaced by a newer one.
pub const GRACE: Duration = Duration::from_secs(30);
/// Sessions that may be ending while a newer one serves.
pub const RETIRING: usize = 4;
/// A clock further from the hub's than this is told.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// How often the facts about the cluster are looked up.
pub const FACTS: Duration = Duration::from_secs(300);
/// Letters of a fact of the cluster.
pub const FACT: usize = 64;
/// How often a node agent looks at its node.
pub const NODE_FACTS: Duration = Duration::from_secs(30);
/// Longest question to the node's etcd.
pub const NODE_PROBE: Duration = Duration::from_secs(3);
/// Largest answer to it, in bytes.
pub const NODE_ANSWER: usize = 4 << 10;
/// Letters of a fact of the node.
pub const NODE_FACT: usize = 128;
/// Letters of a cause.
pub const NODE_CAUSE: usize = 256;
/// Letters of a certificate's name: with what stands before it a key of a fact.
pub const NODE_NAME: usize = 48;
/// Files that are looked at for certificates.
pub const NODE_FILES: usize = 512;
/// Certificates that are told, those that end first.
pub const NODE_CERTIFICATES: usize = 16;
/// Plans that are kept on a node; the one that was over first makes room.
pub const PLANS: usize = 64;
/// Shortest pause before a step is tried again; doubles up to [`PLAN_PAUSE_MAX`].
pub const PLAN_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause before a step is tried again.
pub const PLAN_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a node that was closed for a plan that is taken away is tried to be opened, and the pause between two attempts.
pub const PLAN_REOPEN: Duration = Duration::from_secs(24 * 3600);
/// See [`PLAN_REOPEN`].
pub const PLAN_REOPEN_PAUSE: Duration = Duration::from_secs(5);
/// How often something is looked at again that is waited for.
pub const PLAN_LOOK: Duration = Duration::from_secs(1);
/// Longest wait for a file of the hub's.
pub const PLAN_FETCH: Duration = Duration::from_secs(300);
/// Bytes of a step's output that are kept: the end.
pub const PLAN_OUTPUT: usize = 4 << 10;
/// Letters of a cause.
pub const PLAN_CAUSE: usize = 512;
/// How long what a program has left behind may still print.
pub const PLAN_LAST_OUTPUT: Duration = Duration::from_millis(500);
/// Largest file that comes from the hub or goes there, in bytes.
pub const PLAN_FILE: usize = 64 << 20;
/// Longest that one program of a support bundle runs.
pub const PLAN_COLLECT: Duration = Duration::from_secs(60);
/// Bytes of one file, or one program's output, in a support bundle: the end.
pub const PLAN_PART: usize = 4 << 20;
/// How often the policy file is looked at.
pub const POLICY: Duration = Duration::from_secs(5);
/// Shortest pause between two requests for a new certificate; doubles up to [`RENEW_PAUSE_MAX`].
pub const RENEW_PAUSE: Duration = Duration::from_secs(15);
/// Longest pause between two requests for a new certificate.
pub const RENEW_PAUSE_MAX: Duration = Duration::from_secs(600);
/// Pause between two tries to keep a certificate that is in use and could not be kept.
pub const KEEP_PAUSE: Duration = Duration::from_secs(30);
/// How long before its certificate ends an agent uses one that it cannot keep. Longer than it may be between two requests.
pub const RENEW_UNKEPT: Duration = Duration::from_secs(3 * 600);

/// Connections to `/livez`, `/readyz` and `/metrics` at once.
pub const OPS_CONNECTIONS: usize = 16;
/// Longest wait for the head of a request there.
pub const OPS_HEADER: Duration = Duration::from_secs(5);

/// Longest answer to a question for imports: the hub's own limit, and a while.
pub const IMPORTS_POLL: Duration = Duration::from_secs(40);
/// Pause after such a question failed: this, and up to as much again.
pub const IMPORTS_PAUSE: Duration = Duration::from_secs(2);
/// Longest wait for a connection to the hub for imports, TLS included.
pub const IMPORTS_CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for a connection to an imported service: the hub tries several clusters, each for its time.
pub const IMPORTS_OPEN: Duration = Duration::from_secs(60);
/// Largest answer to a question for imports, in bytes.
pub const IMPORTS_ANSWER: usize = 1 << 20;
/// Connections to all imported services together; more wait to be accepted.
pub const IMPORTS_CONNECTIONS: usize = 4096;
/// When the connection for datagrams to an imported service is closed, and a pod's flow forgotten, where nothing passes.
pub const IMPORTS_IDLE: Duration = Duration::from_secs(60);
/// Pauses between attempts to open such a connection, the first and the longest. What comes meanwhile is dropped.
pub const IMPORTS_FLOWS_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Pause of a listener that cannot accept.
pub const IMPORTS_ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long an agent of this cluster may be away before its addresses are deleted by another.
pub const IMPORTS_GONE: Duration = Duration::from_secs(60);
/// Agents that are away and remembered.
pub const IMPORTS_AGENTS: usize = 1024;
/// Namespaces that are looked through for what is not imported any more.
pub const IMPORTS_NAMESPACES: usize = 256;
/// Longest time to take addresses back at the end.
pub const IMPORTS_LAST: Duration = Duration::from_secs(5);

/// Longest wait for a place inside the cluster to take a connection, lookup and TLS aside.
pub const INSIDE_CONNECT: Duration = Duration::from_secs(10);
/// How long a connection may try before the next address is tried as well (RFC 8305 §5).
pub const INSIDE_HEAD_START: Duration = Duration::from_millis(250);
/// A stream without a byte either way for this long is cut: as long as Kubernetes' own streaming waits.
pub const INSIDE_IDLE: Duration = Duration::from_secs(4 * 3600);
/// When a silent connection is probed for a peer that has gone.
pub const INSIDE_KEEPALIVE: Duration = Duration::from_secs(30);
/// Addresses of one place that are dialled in turn.
pub const INSIDE_CANDIDATES: usize = 8;
/// Addresses of one place that are looked at.
pub const INSIDE_ADDRESSES: usize = 1024;
/// Longest service account token that is vouched for, in bytes.
pub const VOUCHED_TOKEN: usize = 8 << 10;
/// How long a lookup is good for. A failed connection ends that at once.
pub const INSIDE_KNOWN: Duration = Duration::from_secs(5);
/// Places that are remembered.
pub const INSIDE_REMEMBERED: usize = 4096;
/// Streams of one place at once, unless the owner's policy says otherwise.
pub const INSIDE_STREAMS: usize = 1024;
/// Idle connections to one place that are kept for its next HTTP request. Requests come in bursts: with fewer than what is
/// under way at once, connections would be closed after each and made anew for the next.
pub const WEB_IDLE: usize = 128;
/// The same, all places together, of those that are spoken to in plain text: some 12 KiB each.
pub const WEB_IDLE_ALL: usize = 512;
/// How often it is looked for some that are too old, or whose server has hung up.
pub const WEB_SWEEP: Duration = Duration::from_secs(5);
/// How long they are kept. Shorter than what servers usually wait before they close one.
pub const WEB_KEPT: Duration = Duration::from_secs(20);
/// Flows of datagrams on one stream.
pub const FLOWS: usize = 1024;
/// A flow without an answer for this long is forgotten.
pub const FLOW_IDLE: Duration = Duration::from_secs(60);
/// Bytes of datagrams that wait while their flows are looked up, on one stream.
pub const FLOW_WAITING: usize = 256 << 10;
/// Datagrams that wait for the stream.
pub const FLOW_QUEUE: usize = 256;
/// Bytes asked of the stream at once.
pub const FLOW_READ: usize = 8 << 10;
/// Bytes of datagrams written at once.
pub const FLOW_BATCH: usize = 64 << 10;
/// Largest payload of a datagram over UDP.
pub const DATAGRAM: usize = 65_507;
/// How long the addresses of nodes, API server and hub are taken for known.
pub const GROUND_KNOWN: Duration = Duration::from_secs(120);
/// When they are looked up again where that failed.
pub const GROUND_RETRY: Duration = Duration::from_secs(5);
/// Nodes asked for at a time: their objects are large.
pub const NODE_PAGE: usize = 10;
/// Such pages.
pub const NODE_PAGES: usize = 1000;
/// Letters of why no better carrier is in use.
pub const WHY: usize = 256;

//! The cluster agent: dials the hub and serves streams.
//!
//! [`run`] joins once ([`join`]), keeps what it got ([`membership`], [`state`]), keeps one session to the hub ([`uplink`]) and serves the
//! streams that the hub opens on it ([`serve`]) from the cluster's API server ([`upstream`]), as far as the owner's policy
//! ([`policy`]) allows. Nothing dials into it.
#![forbid(unsafe_code)]

pub mod config;
pub mod dialler;
pub mod endpoint;
pub mod facts;
pub mod identity;
pub mod imports;
pub mod inside;
pub mod join;
pub mod limits;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod ops;
pub mod policy;
pub mod rejoin;
pub mod renew;
pub mod review;
pub mod secret;
pub mod serve;
#[cfg(any(target_os = "linux", windows))]
pub mod shell;
#[cfg(not(any(target_os = "linux", windows)))]
#[path = "no_shell.rs"]
pub mod shell;
pub mod state;
pub mod uplink;
pub mod upstream;

pub use config::{AgentRole, Config, ConfigError, EndpointConfig, Preference, UpstreamConfig};

use endpoint::{Room, RoomError};
use identity::Holder;
use join::JoinError;
use membership::Membership;
use metrics::Metrics;
use moorline_authz::token::TokenText;
use moorline_proto::id::AgentName;
use policy::{PolicyFile, PolicyFileError};
use prometheus::Registry;
use rand::Rng;
use rcgen::KeyPair;
use rejoin::{Rejoin, Renewable};
use review::ClusterRules;
use secret::{SecretCopy, SecretError};
use serve::{More, Service};
use shell::NodeShells;
use state::{StateDir, StateError};
use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use upstream::{ApiServer, EndpointError};

/// Why the agent ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A setting cannot be obeyed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state's Secret cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// There is no state, and no token to get one.
    #[error(
        "this agent has not joined a hub: {dir} holds no state and no token was given. Make one at the hub (moorline token \
         create --cluster <cluster>) and start the agent with it"
    )]
    NotJoined {
        /// The state folder.
        dir: String,
    },
    /// The state is for another cluster than the one named.
    #[error(
        "the state folder belongs to cluster {found}, not to {wanted}; name another folder, or delete it and join anew"
    )]
    OtherCluster {
        /// What the state says.
        found: String,
        /// What the configuration says.
        wanted: String,
    },
    /// The state is for another role than the one named.
    #[error(
        "the state folder belongs to a {found} agent, not to a {wanted} agent; name another folder, or delete it and join anew"
    )]
    OtherRole {
        /// What the state says.
        found: AgentRole,
        /// What the configuration says.
        wanted: AgentRole,
    },
    /// The hub did not take the agent.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The owner's policy cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyFileError),
    /// The folder of plans.
    #[error(transparent)]
    Plans(#[from] node::plans::PlansError),
    /// The folder of the cluster's own endpoint.
    #[error(transparent)]
    Endpoint(#[from] RoomError),
    /// Nothing says how to reach the API server.
    #[error(transparent)]
    Upstream(#[from] EndpointError),
    /// The address for metrics cannot be used.
    #[error("cannot listen on {addr}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The metrics cannot be registered.
    #[error("cannot register the metrics")]
    Metrics(#[from] prometheus::Error),
}

/// Runs an agent until `stop`. Then it says goodbye, lets open streams end for at most [`limits::GRACE`] and returns.
///
/// # Errors
/// It could not begin, see [`AgentError`]. Once it runs, trouble with hub and API server is retried for ever.
///
/// # Cancel safety
/// Dropping the future ends everything at once.
pub async fn run(config: Config, stop: CancellationToken, registry: &Registry) -> Result<(), AgentError> {
    config.validate()?;
    let metrics = Metrics::new(registry)?;
    let policy = Arc::new(PolicyFile::open(config.policy_file.as_deref())?);
    let upstream = Arc::new(ApiServer::new(config.upstream.clone(), metrics.clone()).await?);
    let listener = match config.http_addr {
        None => None,
        Some(addr) => Some(TcpListener::bind(addr).await.map_err(|source| AgentError::Listen { addr, source })?),
    };
    let ops = async {
        match listener {
            Some(listener) => ops::serve(listener, registry.clone(), metrics.clone()).await,
            None => std::future::pending().await,
        }
    };
    let work = async {
        let state = StateDir::open(&config.state_dir)?;
        let account = match &config.upstream {
            UpstreamConfig::InCluster { dir } => Some(dir.as_path()),
            UpstreamConfig::Kubeconfig { .. } | UpstreamConfig::Given(_) | UpstreamConfig::At { .. } => None,
        };
        let copy = config.state_secret.as_ref().map(|name| SecretCopy::new(upstream.clone(), name, account));
        let Some(key) = before(&stop, prepare(&state, copy.as_ref())).await? else { return Ok(()) };
        let Some(membership) = membership(&config, &state, &key, &stop).await? else { return Ok(()) };
        if let Some(copy) = &copy
            && before(&stop, copy.save(&state)).await?.is_none()
        {
            return Ok(());
        }
        let kept = state.clone();
        let follow = async {
            match &copy {
                Some(copy) => copy.follow(&kept).await,
                None => std::future::pending().await,
            }
        };
        tracing::info!(cluster = %membership.cluster, name = %membership.name, hub = %config.hub, "agent starts");
        let room = config.endpoint.as_ref().map(|room| Room::open(room, &membership, metrics.clone())).transpose()?;
        let keeper = config.endpoint.as_ref().and_then(|room| room.secret.as_ref()).zip(room.clone());
        let keeper = keeper.map(|(name, room)| endpoint::Keeper::new(room, upstream.clone(), name, account));
        let keep = async {
            match &keeper {
                Some(keeper) => keeper.run().await,
                None => std::future::pending().await,
            }
        };
        let cluster = membership.cluster.clone();
        let plans = match config.role {
            AgentRole::Node => Some(Arc::new(node::plans::Plans::open(
                &config.state_dir,
                &membership,
                config.node_name.clone(),
                policy.clone(),
                upstream.clone(),
            )?)),
            AgentRole::Cluster => None,
        };
        let holder = Holder::new(key, state, config.hub.to_string(), membership, metrics.clone());
        let mut told = None;
        let clock = Arc::new(node::HubClock::default());
        let local = (config.role == AgentRole::Node)
            .then(|| node::facts::NodeLooker::new(config.node.clone(), clock.clone(), config.state_dir.clone()));
        let looker = facts::Looker {
            upstream: upstream.clone(),
            node: config.node_name.clone(),
            endpoint: room.is_some(),
            local,
            policy: policy.clone(),
            known: std::sync::Mutex::default(),
        };
        let (tell, facts) = watch::channel(looker.look(&mut told).await);
        let shells = (config.role == AgentRole::Node).then(|| NodeShells::new(&config, &cluster)).flatten();
        let places = inside::Metrics::new(registry)?;
        let places = inside::Inside::new(upstream.clone(), policy.clone(), Some(config.hub.clone()), places);
        let voucher = (config.role == AgentRole::Cluster)
            .then(|| node::vouch::Voucher::new(upstream.clone(), config.node.account.clone()));
        let more_room = room.clone();
        let node = config.role == AgentRole::Node;
        let more = More { node, room, inside: Some(places), shells, plans: plans.clone(), voucher };
        let rules = Arc::new(ClusterRules::new(upstream.clone()));
        let service = Service::new(upstream.clone(), rules, policy.clone(), metrics.clone(), more);
        let holder = Arc::new(holder);
        let mending = Arc::clone(&holder);
        let believing = believe(holder.changes(), more_room, plans.clone());
        let importing = match config.imports_address {
            None => None,
            Some(address) => {
                let whom = (config.hub.clone(), holder.clone());
                let counted = imports::Metrics::new(registry)?;
                Some(imports::Imports::new(whom, upstream.clone(), policy.clone(), address, counted))
            }
        };
        let dialler = dialler::Dialler {
            hub: config.hub.clone(),
            carrier: config.carrier,
            holder,
            rejoin: Rejoin::of(&config, &metrics),
            facts,
            clock,
            limits: moorline_link::Limits::default(),
            memory: std::sync::Mutex::default(),
            why: tokio::sync::watch::Sender::default(),
            shut_out: std::sync::atomic::AtomicU32::new(0),
        };
        let driver = uplink::Driver::new(dialler, service, metrics.clone());
        let serve = async {
            let import = async {
                if let Some(importing) = &importing {
                    importing.run(stop.clone()).await;
                }
            };
            tokio::join!(driver.run(stop.clone()), import);
        };
        tokio::select! {
            () = serve => {}
            () = looker.watch(&tell, told) => {}
            () = follow => {}
            () = work_on(plans.as_deref()) => {}
            () = keep => {}
            () = believing => {}
            () = mending.mend() => {}
        }
        Ok(())
    };
    tokio::select! {
        done = work => done,
        () = ops => Ok(()),
        () = upstream.maintain() => Ok(()),
        () = policy.watch(&metrics) => Ok(()),
    }
}

/// Tells who checks signatures of the hub which authorities the agent believes. Never ends.
async fn believe(
    mut changes: watch::Receiver<Arc<Membership>>,
    room: Option<Room>,
    plans: Option<Arc<node::plans::Plans>>,
) {
    while changes.changed().await.is_ok() {
        let now = changes.borrow_and_update().clone();
        if let Some(plans) = &plans {
            plans.trust(&now.bundle);
        }
        if let Some(room) = room.clone() {
            // A panic there would be told by the task's own hook; the room then believes as before.
            let _ = tokio::task::spawn_blocking(move || room.trust(&now.bundle)).await;
        }
    }
    std::future::pending().await
}

/// Does a node's plans. Never ends.
async fn work_on(plans: Option<&node::plans::Plans>) {
    match plans {
        Some(plans) => plans.run().await,
        None => std::future::pending().await,
    }
}

/// The agent's key. With a Secret it is there too before the hub hears of it: a join is good for one key alone.
async fn prepare(state: &StateDir, copy: Option<&SecretCopy>) -> Result<KeyPair, AgentError> {
    let Some(copy) = copy else { return Ok(state.key()?) };
    copy.restore(state).await?;
    let key = state.key()?;
    copy.save(state).await?;
    Ok(key)
}

/// What `work` comes to; `None`: stopped before that.
async fn before<T, E>(stop: &CancellationToken, work: impl Future<Output = Result<T, E>>) -> Result<Option<T>, E> {
    tokio::select! {
        done = work => done.map(Some),
        () = stop.cancelled() => Ok(None),
    }
}

/// Who this agent is: by its state, or by joining. `None`: stopped before that.
async fn membership(
    config: &Config,
    state: &StateDir,
    key: &KeyPair,
    stop: &CancellationToken,
) -> Result<Option<Membership>, AgentError> {
    let pin = config.token.as_deref().and_then(|token| TokenText::parse(token).ok()?.pin);
    let renewable = Renewable::of(config).is_some();
    let mut expired = None;
    match (state.membership(key), &config.token) {
        (Ok(Some(kept)), token) => {
            // A token for another hub is an order to go there; one for the same hub has done its work.
            let trusted = pin.as_ref().is_some_and(|pin| kept.trusts_pin(pin));
            let dropped = !trusted && pin.as_ref().map(|pin| state.was_trusted(pin)).transpose()?.unwrap_or_default();
            if token.is_none() || trusted || dropped {
                fits(config, &kept)?;
                // By a proof that is good again the dialler joins anew, now as later. A token may be a new one; but not one
                // of an authority that was dropped, whose key somebody may have who is not the hub.
                if token.is_none() || renewable || dropped || !kept.has_expired(SystemTime::now()) {
                    return Ok(Some(kept));
                }
                tracing::warn!(cluster = %kept.cluster, "the certificate has expired; joining anew with the token");
                expired = Some(kept);
            } else {
                tracing::warn!(cluster = %kept.cluster, "the token is from another hub than the state; joining there");
            }
        }
        (Ok(None), None) if !renewable => {
            return Err(AgentError::NotJoined { dir: config.state_dir.display().to_string() });
        }
        (Ok(None), _) => {}
        (Err(e @ StateError::Corrupt { .. }), token) if token.is_some() || renewable => {
            tracing::warn!(cause = %e, "the state is replaced by joining anew")
        }
        (Err(e), _) => return Err(e.into()),
    }
    // Who joins anew stays who it was.
    let old = expired.as_ref().map(|old: &Membership| old.name.clone());
    let name = old.or_else(|| config.name.clone()).unwrap_or_else(host_name);
    let mut pause = Duration::from_secs(1);
    loop {
        let attempt = async {
            let proof = join::Proof::of(config).await?;
            join::join(&config.hub, &proof, key, (&name, config.role), config.cluster.as_ref()).await
        };
        let joined = tokio::select! {
            joined = attempt => joined,
            () = stop.cancelled() => return Ok(None),
        };
        match joined {
            Ok(membership) => {
                state.keep(&config.hub.to_string(), &membership)?;
                tracing::info!(cluster = %membership.cluster, name = %membership.name, "joined");
                return Ok(Some(membership));
            }
            Err(e) if e.is_retryable() => {
                let least = if matches!(e, JoinError::NotTheHub { .. }) {
                    limits::REFUSED_PAUSE
                } else {
                    Duration::from_millis(100)
                };
                tracing::warn!(cause = %upstream::chain(&e), "not joined yet; trying again");
                let rest = least + pause.mul_f64(rand::rng().random());
                tokio::select! {
                    () = sleep(rest) => {}
                    () = stop.cancelled() => return Ok(None),
                }
                pause = (pause * 2).min(limits::JOIN_PAUSE);
            }
            Err(e) => match expired {
                // The token that it joined with long ago. And if it is this host's clock that is wrong, time heals that.
                Some(old) => {
                    tracing::warn!(cause = %upstream::chain(&e), "the certificate has expired, and this token is of no use");
                    return Ok(Some(old));
                }
                None => return Err(e.into()),
            },
        }
    }
}

/// Whether what is kept is what the configuration wants.
fn fits(config: &Config, kept: &Membership) -> Result<(), AgentError> {
    match &config.cluster {
        Some(wanted) if *wanted != kept.cluster => {
            Err(AgentError::OtherCluster { found: kept.cluster.to_string(), wanted: wanted.to_string() })
        }
        _ if kept.role != config.role => Err(AgentError::OtherRole { found: kept.role, wanted: config.role }),
        _ => Ok(()),
    }
}

/// The host's name as far as it makes an agent's name.
fn host_name() -> AgentName {
    let host = state::read_text("/proc/sys/kernel/hostname".as_ref())
        .or_else(|_| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).map_err(io::Error::other));
    let host = host.unwrap_or_default().trim().to_ascii_lowercase();
    let first = host.split('.').next().unwrap_or_default();
    let plain: String = first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    plain.trim_matches('-').parse().unwrap_or_else(|_| fallback_name())
}

fn fallback_name() -> AgentName {
    match "agent".parse() {
        Ok(name) => name,
        Err(_) => unreachable!("a constant name that is valid"),
    }
}

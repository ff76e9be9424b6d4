//! Puts the parts together, and takes them apart in order.

mod certificate;
mod error;
mod port;

pub use error::HubError;

use crate::{
    access,
    alive::{Alive, Part},
    authority::{self, Holding, pin_text},
    bootstrap::bootstrap,
    config::Config,
    crowd::Crowd,
    direct::{Bundles, Delivery},
    directory::Directory,
    files,
    follow::Followed,
    front::{BENCHES, Front, Gate, Permits, Searches},
    given::Given,
    hubapi::HubApi,
    issue::Issuer,
    join::Joiner,
    link::Links,
    listener::{Port, serve_quic},
    login::{Configured, Logins},
    metrics::Metrics,
    nodes::Keeper,
    ops::{self, Health},
    pki::Authority,
    plans,
    plugins::{self, Backing},
    quota::Quotas,
    rate::RateLimit,
    records::Records,
    sessions::{Registry, Sessions},
    shares::Shares,
    signing::Signing,
    specs::{self, JoinFacts},
    status::{StatusWriter, forget_sessions},
    websocket::Door,
};
use arc_swap::ArcSwap;
use moorline_apiserver::{ApiServer, KindSpec};
use moorline_link::{QuicKeys, QuicListener};
use moorline_plugin::{Home, Host, Readiness};
use moorline_proxy::{
    audit::{AuditSink, FileSink},
    kube::ProxyMetrics,
};
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime},
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::timeout};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Longest wait for what follows the grace: sessions saying goodbye, the last status, the last audit lines.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A hub that serves. Dropping it ends it at once.
pub struct Hub {
    addr: SocketAddr,
    ops_addr: SocketAddr,
    sessions: Arc<Sessions>,
    front: Arc<Front>,
    plugins: Arc<Host>,
    quic: Arc<QuicListener>,
    audit: Arc<FileSink>,
    stop: CancellationToken,
    finish: CancellationToken,
    draining: CancellationToken,
    writer_stop: CancellationToken,
    writer: tokio_util::task::AbortOnDropHandle<()>,
    background: JoinSet<()>,
    grace: Duration,
    _kill: DropGuard,
    _lock: std::fs::File,
}

struct Checks {
    records: Records,
    draining: CancellationToken,
    authority: Arc<Authority>,
    alive: Arc<Alive>,
    plugins: Arc<Host>,
}

impl Health for Checks {
    fn checks(&self) -> Vec<(&'static str, Result<(), String>)> {
        let draining = if self.draining.is_cancelled() { Err("shutting down".to_owned()) } else { Ok(()) };
        let ca = if self.authority.expires() > SystemTime::now() { Ok(()) } else { Err("expired".to_owned()) };
        vec![
            ("store", self.records.healthy()),
            ("ca", ca),
            ("listener", self.alive.listening()),
            ("changes", self.alive.following()),
            ("draining", draining),
        ]
    }

    fn plugins(&self) -> Vec<Readiness> {
        self.plugins.readiness()
    }
}

impl Hub {
    /// Starts a hub; it serves when this returns.
    ///
    /// # Errors
    /// See [`HubError`]; nothing is left running.
    pub async fn start(config: Config, registry: &prometheus::Registry) -> Result<Self, HubError> {
        config.validate()?;
        let of_config = Configured::plugin(&config.logins)?;
        let dir = config.data_dir.clone();
        files::private_folder(&dir).map_err(|source| HubError::DataDir { dir: dir.clone(), source })?;
        // The lock comes first: a second hub must not touch the authority's files.
        let lock = crate::place::take(&dir).await.map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => HubError::Taken(dir.clone()),
            _ => HubError::DataDir { dir: dir.clone(), source },
        })?;
        let internal = |e: &dyn std::fmt::Display| HubError::Internal(e.to_string());
        let metrics = Metrics::new(registry).map_err(|e| internal(&e))?;
        let proxy_metrics = ProxyMetrics::new(registry).map_err(|e| internal(&e))?;
        let store = crate::place::open_store(&config).await?;
        let authority = Arc::new(Authority::open(&dir, &config.trust_domain)?);
        let join_facts = JoinFacts { authority: Arc::clone(&authority), public_url: config.public_url.clone() };
        let stop = CancellationToken::new();
        let (finish, draining, kill) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let mut host = Host::new(of_config.into_iter().chain(config.plugins.clone()).collect(), registry)?;
        let providers = host.logins();
        let mut kinds = specs::all(&store, join_facts);
        plugins::hold(&mut kinds, &host);
        kinds.extend(host.kinds());
        if let Some(plural) = twice(&kinds) {
            return Err(HubError::Internal(format!("a plugin brings the kind {plural:?}, which the hub has itself")));
        }
        let api_limits = moorline_apiserver::Limits::default();
        let server = ApiServer::new(store.clone(), kinds, api_limits, registry, finish.clone());
        let server = Arc::new(server.map_err(|e| internal(&e))?);
        let migrated = server.migrate_versions().await.map_err(|e| HubError::Records(e.to_string()))?;
        if migrated > 0 {
            tracing::info!(migrated, "wrote objects anew that were stored in an older version of their kind");
        }
        let orphans = server.collect_orphans().await.map_err(|e| HubError::Records(e.to_string()))?;
        if orphans > 0 {
            tracing::info!(orphans, "removed what a deletion that was cut short had left");
        }
        #[cfg(unix)]
        let server_store = store.clone();
        let records = Records::new(store, Arc::clone(&server));
        forget_sessions(&records).await?;
        plugins::release(&records, &host).await?;
        let signing = Arc::new(Signing::open(records.clone(), &config).await.map_err(HubError::Records)?);
        let issuer = Arc::new(Issuer::new(records.clone(), Arc::clone(&signing), &config));
        let names = providers.iter().map(|provider| provider.name().to_owned()).collect();
        let directory = Arc::new(
            Directory::new(records.clone(), metrics.clone(), signing.verifier(), names)
                .recording(config.recordings.sessions),
        );
        let logins = Logins::new(
            records.clone(),
            Arc::clone(&directory),
            metrics.clone(),
            Arc::clone(&issuer),
            providers,
            &config,
        );
        let logins = logins.map_err(|source| HubError::DataDir { dir: dir.join("renewals.secret"), source })?;
        let logins = Arc::new(logins);
        bootstrap(&config, &records, &logins, &authority).await?;
        let bundles = Arc::new(Bundles::new(
            Arc::clone(&directory),
            Arc::clone(&signing),
            Arc::clone(&authority),
            records.clone(),
            config.bundle_life,
        ));

        let audit_path = dir.join("audit.log");
        let opened = FileSink::open(&audit_path, config.audit_rotation.clone(), config.audit_on_failure);
        let (audit, found) = opened.map_err(|source| HubError::Audit { path: audit_path.clone(), source })?;
        if found.cut {
            metrics.audit_cut.inc();
            tracing::error!(path = %audit_path.display(), "the audit log was cut since it was last written; see: moorline audit verify");
        }
        let sink: Arc<dyn AuditSink> = Arc::clone(&audit) as Arc<dyn AuditSink>;
        let recordings = config.recordings.open(&dir, Arc::clone(&sink));
        let recordings = recordings.map_err(|source| HubError::DataDir { dir: dir.join("recordings"), source })?;
        let session_registry = Arc::new(Registry::default());
        let links = Links::new(Arc::clone(&session_registry)).map_err(|e| internal(&e))?;
        registry.register(Box::new(links)).map_err(|e| internal(&e))?;
        let holding = Holding::new(Arc::clone(&session_registry), Arc::clone(&authority)).map_err(|e| internal(&e))?;
        registry.register(Box::new(holding)).map_err(|e| internal(&e))?;
        authority::refresh_kubeconfig(&dir, &authority.pem());
        let status = StatusWriter::default();
        let joiner = Arc::new(Joiner {
            authority: Arc::clone(&authority),
            records: records.clone(),
            registry: Arc::clone(&session_registry),
            audit: Arc::clone(&sink),
            metrics: metrics.clone(),
            life: config.agent_certificate_life,
            agents_per_cluster: config.limits.agents_per_cluster,
            nodes_per_cluster: config.limits.nodes_per_cluster,
            rate: RateLimit::new(config.limits.join_burst, config.limits.join_every, config.limits.remembered),
            questions: crate::join::Questions::default(),
        });
        let nodes = Arc::new(Keeper::new(Arc::clone(&session_registry), records.clone(), metrics.clone()));
        let sessions = Arc::new(Sessions {
            nodes: Arc::clone(&nodes),
            registry: Arc::clone(&session_registry),
            records: records.clone(),
            joiner: Arc::clone(&joiner),
            status: status.clone(),
            metrics: metrics.clone(),
            limits: config.limits.clone(),
            tasks: TaskTracker::new(),
            draining: draining.clone(),
            greetings: Semaphore::new(config.limits.greetings),
            next_id: AtomicU64::new(1),
        });
        let shares = Arc::new(Shares::new(
            Arc::clone(&session_registry),
            records.clone(),
            Arc::clone(&sessions),
            metrics.clone(),
        ));
        let front_tasks = TaskTracker::new();
        let (clusters, seen_clusters) = tokio::sync::watch::channel(Arc::default());
        let mut told = records.watch();
        plugins::tell(&mut told, &clusters);
        let backing = Backing {
            server: Arc::clone(&server),
            access: host.access(),
            registry: Arc::clone(&session_registry),
            records: records.clone(),
            audit: Arc::clone(&sink),
            metrics: metrics.clone(),
            proxy_metrics: proxy_metrics.clone(),
            finish: finish.clone(),
            tasks: front_tasks.clone(),
            spread: config.limits.watch_spread,
        };
        host.start(Arc::new(backing), &seen_clusters);
        let rules = host.rules();
        let host = Arc::new(host);
        let alive = Arc::new(Alive::default());
        let health: Arc<dyn Health> = Arc::new(Checks {
            records: records.clone(),
            draining: draining.clone(),
            authority: Arc::clone(&authority),
            alive: Arc::clone(&alive),
            plugins: Arc::clone(&host),
        });
        let gate = Gate {
            directory: Arc::clone(&directory),
            records: records.clone(),
            quotas: Quotas::new(&config.rate_limits, config.limits.remembered),
            permits: Permits::default(),
            metrics: metrics.clone(),
            rights_without_store: config.rights_without_store,
        };
        let front = Arc::new(Front {
            gate,
            directory: Arc::clone(&directory),
            registry: Arc::clone(&session_registry),
            records: records.clone(),
            api: HubApi::new(server, rules),
            plugins: Arc::clone(&host),
            joiner,
            logins: Arc::clone(&logins),
            public_url: config.public_url.clone(),
            audit_path: audit_path.clone(),
            recordings,
            searches: Searches::new(config.limits.audit_searches),
            benches: Semaphore::new(BENCHES),
            issuer: Arc::clone(&issuer),
            bundles: Arc::clone(&bundles),
            audit: sink,
            health: Arc::clone(&health),
            metrics: metrics.clone(),
            proxy_metrics,
            limits: config.limits.clone(),
            authority: Arc::clone(&authority),
            tasks: front_tasks,
            finish: finish.clone(),
            alive: Arc::clone(&alive),
            strangers: Arc::new(Crowd::new(
                config.limits.bodies_of_strangers,
                config.limits.bodies_of_strangers_per_address,
            )),
            names: crate::front::Names::new(&config),
            plan_files: Arc::new(plans::Files::new(dir.join("plan-files"))),
            shares: Arc::clone(&shares),
        });

        let quic_secret = dir.join("quic.secret");
        let quic_keys = files::secret(&quic_secret).map(|secret| QuicKeys::new(&secret));
        let quic_keys = quic_keys.map_err(|source| HubError::DataDir { dir: quic_secret, source })?;
        let (tcp, udp) = port::bind(config.listen).await?;
        let listening = |address, what| move |source| HubError::Listen { address, what, source };
        let addr = tcp.local_addr().map_err(listening(config.listen, "TCP"))?;
        let ops_listener = TcpListener::bind(config.ops_listen).await.map_err(listening(config.ops_listen, "ops"))?;
        let ops_addr = ops_listener.local_addr().map_err(listening(config.ops_listen, "ops"))?;
        let given = config.certificate.clone().map(Given::open).transpose();
        let given = given.map_err(HubError::Certificate)?;
        let pair = certificate::issue(&authority, &config, given.clone()).map_err(HubError::Internal)?;
        let link_limits = moorline_link::Limits::default();
        let quic = QuicListener::bind(udp, Arc::clone(&pair.tunnel), quic_keys, &link_limits)
            .map_err(listening(config.listen, "UDP"))?;
        let quic = Arc::new(quic);
        let tls_pair = Arc::new(ArcSwap::from_pointee(pair));
        let handshakes = Arc::new(Crowd::new(config.limits.handshakes, config.limits.handshakes_per_address));
        let websocket = Arc::new(Door {
            sessions: Arc::clone(&sessions),
            tls: Arc::clone(&tls_pair),
            link_limits: link_limits.clone(),
            handshakes: Arc::clone(&handshakes),
            kill: kill.clone(),
        });
        let connections = || Arc::new(Crowd::new(config.limits.connections, config.limits.connections_per_address));
        let port = Arc::new(Port {
            front: Arc::clone(&front),
            sessions: Arc::clone(&sessions),
            tls: Arc::clone(&tls_pair),
            websocket,
            link_limits,
            handshakes,
            connections: connections(),
            importing: connections(),
            stop: stop.clone(),
            finish: finish.clone(),
            kill: kill.clone(),
        });

        let mut background = JoinSet::new();
        let mut followed = Followed::list(&records);
        followed.load(&directory)?;
        followed.start(&mut background, &directory, &sessions, &shares, &kill, &alive);
        background.spawn(shares.run(kill.clone()));
        if let Some(given) = &given {
            background.spawn(Arc::clone(given).follow(metrics.clone(), kill.clone()));
        }
        #[cfg(unix)]
        match crate::control::listen(&dir) {
            Ok(socket) => {
                background.spawn(crate::control::serve(
                    socket,
                    (server_store, config.store.clone()),
                    authority::Turning {
                        authority: Arc::clone(&authority),
                        records: records.clone(),
                        dir: dir.clone(),
                    },
                    kill.clone(),
                ));
            }
            Err(error) => tracing::warn!(%error, "no control socket: backups can be made while this hub does not run"),
        }
        background.spawn(plugins::follow(told, clusters));
        background.spawn(signing.run(kill.clone()));
        let delivery = Delivery {
            bundles,
            registry: Arc::clone(&session_registry),
            records: records.clone(),
            metrics: metrics.clone(),
            audit: Arc::clone(&front.audit),
            recordings: Arc::clone(&front.recordings),
            rights_without_store: config.rights_without_store,
        };
        background.spawn(delivery.run(kill.clone()));
        background.spawn(issuer.sweep(kill.clone()));
        background.spawn(nodes.run(kill.clone()));
        background.spawn(crate::events::sweep(records.clone(), kill.clone()));
        let driver = plans::Driver {
            registry: Arc::clone(&session_registry),
            records: records.clone(),
            authority: Arc::clone(&authority),
            files: Arc::clone(&front.plan_files),
            metrics: metrics.clone(),
        };
        background.spawn(driver.run(kill.clone()));
        let audit_of_access = Arc::clone(&front.audit);
        let clock =
            access::clock(records.clone(), Arc::clone(&directory), audit_of_access, metrics.clone(), kill.clone());
        background.spawn(clock);
        background.spawn(Arc::clone(&logins).keep_locks(kill.clone()));
        background.spawn(logins.recheck(config.recheck_logins, kill.clone()));
        background.spawn(alive.while_running(Part::Tcp, port.serve(tcp)));
        let udp = serve_quic(Arc::clone(&quic), Arc::clone(&sessions), stop.clone());
        background.spawn(alive.while_running(Part::Quic, udp));
        background.spawn(ops::serve(ops_listener, registry.clone(), health, kill.clone()));
        background.spawn(certificate::renew(
            authority,
            (config.clone(), given.clone()),
            tls_pair,
            Arc::clone(&quic),
            kill.clone(),
        ));
        let writer_stop = CancellationToken::new();
        let writer = tokio::spawn(status.run(session_registry, records, metrics, writer_stop.clone()));
        host.serves(Home { address: port::local(addr), data: dir.clone() });
        tracing::info!(%addr, ops = %ops_addr, url = config.public_url, pin = pin_text(&front.joiner.authority.pin()), "hub serves");
        Ok(Self {
            addr,
            ops_addr,
            sessions,
            front,
            plugins: host,
            quic,
            audit,
            stop,
            finish,
            draining,
            writer_stop,
            writer: tokio_util::task::AbortOnDropHandle::new(writer),
            background,
            grace: config.limits.grace,
            _kill: kill.drop_guard(),
            _lock: lock,
        })
    }

    /// Where agents, kubectl and people are served: TCP and UDP.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where health and metrics are served.
    pub fn ops_addr(&self) -> SocketAddr {
        self.ops_addr
    }

    /// Not ready, agents told, no new connections; open work ends within the grace; then everything ends.
    pub async fn shutdown(mut self) {
        tracing::info!("shutting down");
        self.draining.cancel();
        self.sessions.drain(self.grace);
        self.stop.cancel();
        self.finish.cancel();
        self.plugins.shutdown().await;
        self.front.tasks.close();
        if timeout(self.grace, self.front.tasks.wait()).await.is_err() {
            tracing::warn!(open = self.front.tasks.len(), "connections were cut at the end of the grace");
        }
        self.sessions.close_all();
        self.sessions.tasks.close();
        let _ = timeout(LAST_WORDS, self.sessions.tasks.wait()).await;
        self.writer_stop.cancel();
        let _ = timeout(LAST_WORDS, &mut self.writer).await;
        let _ = timeout(LAST_WORDS, self.quic.close()).await;
        let _ = timeout(LAST_WORDS, self.front.logins.keep_last_locks()).await;
        self.audit.close().await;
        self.background.shutdown().await;
        tracing::info!("hub ended");
    }
}

/// A kind that is there twice.
fn twice(kinds: &[KindSpec]) -> Option<&'static str> {
    let mut seen = std::collections::HashSet::new();
    kinds.iter().map(KindSpec::plural).find(|plural| !seen.insert(*plural))
}

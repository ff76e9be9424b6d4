//! Certificates are renewed in band, at two thirds of their life.

use crate::{
    facts::Telling,
    identity::{AdoptError, Holder},
    join::signing_request,
    limits,
    metrics::Metrics,
    upstream::chain,
};
use moorline_link::Session;
use moorline_proto::control::Control;
use rand::Rng;
use rustls_pki_types::CertificateDer;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, sleep_until};

/// How long until a certificate that lives from `from` to `until` is to be renewed: two thirds of its life, give or take
/// a tenth of it, so that a fleet that joined together does not renew together. `share` is from 0 to 1.
fn due(from: SystemTime, until: SystemTime, now: SystemTime, share: f64) -> Duration {
    let life = until.duration_since(from).unwrap_or_default();
    let at = from + life.mul_f64(2.0 / 3.0 + (share - 0.5) * 0.2);
    at.duration_since(now).unwrap_or_default()
}

fn next(holder: &Holder) -> Duration {
    match holder.membership().validity() {
        Ok((from, until)) => due(from, until, SystemTime::now(), rand::rng().random()),
        Err(_) => limits::RENEW_PAUSE_MAX,
    }
}

/// Speaks on a session's control stream: renews the certificate when it is due, tells facts that changed. Returns once
/// a new certificate is in use, so that a new session may show it; or when the session is over.
///
/// # Cancel safety
/// Safe; a renewal under way is asked for again.
pub async fn control(session: &Session, holder: &Arc<Holder>, facts: &mut Telling, metrics: &Metrics) -> bool {
    let mut at = Instant::now() + next(holder);
    let mut pause = limits::RENEW_PAUSE;
    loop {
        tokio::select! {
            message = session.recv() => match message {
                None => return false,
                Some(Control::Renewed { chain, bundle }) => match renewed(holder, chain, bundle).await {
                    Ok(()) => {
                        let how = if holder.is_unkept() { "unkept" } else { "renewed" };
                        metrics.renewals.with_label_values(&[how]).inc();
                        tracing::info!("certificate renewed");
                        return true;
                    }
                    Err(cause) => {
                        metrics.renewals.with_label_values(&["unusable"]).inc();
                        tracing::warn!(cause, "the renewed certificate cannot be used; asking again later");
                    }
                },
                Some(Control::RenewRefused { message }) => {
                    metrics.renewals.with_label_values(&["refused"]).inc();
                    tracing::warn!(%message, "the hub refused to renew the certificate; asking again later");
                }
                Some(_) => {}
            },
            () = sleep_until(at) => {
                match signing_request(holder.key()) {
                    Ok(csr) => {
                        if session.send(Control::Renew { csr: csr.der().to_vec() }).await.is_err() { return false }
                    }
                    Err(cause) => tracing::error!(cause, "no signing request could be made"),
                }
                // Whatever becomes of it, it is asked for again, ever less often.
                at = Instant::now() + pause + pause.mul_f64(rand::rng().random());
                pause = (pause * 2).min(limits::RENEW_PAUSE_MAX);
            }
            now = facts.changed() => {
                if session.send(Control::Facts(now)).await.is_err() { return false }
            }
        }
    }
}

async fn renewed(holder: &Arc<Holder>, chain_der: Vec<Vec<u8>>, bundle: Vec<Vec<u8>>) -> Result<(), String> {
    let certificates = |all: Vec<Vec<u8>>| all.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
    match adopt(holder, certificates(chain_der), certificates(bundle), true).await {
        Ok(result) => result.map_err(|e| chain(&e)),
        Err(e) => Err(e.to_string()),
    }
}

/// [`Holder::adopt`], off the threads that serve.
///
/// # Errors
/// The outer one: it panicked.
pub(crate) async fn adopt(
    holder: &Arc<Holder>,
    chain: Vec<CertificateDer<'static>>,
    bundle: Vec<CertificateDer<'static>>,
    further_use: bool,
) -> Result<Result<(), AdoptError>, tokio::task::JoinError> {
    let holder = holder.clone();
    tokio::task::spawn_blocking(move || holder.adopt(chain, bundle, further_use)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_around_two_thirds() {
        let from = SystemTime::UNIX_EPOCH;
        let day = Duration::from_secs(86_400);
        let at = |share| due(from, from + day, from, share).as_secs();
        assert_eq!(at(0.5), 57_600);
        assert!(at(0.0) >= 48_000 && at(1.0) <= 67_000);
        assert_eq!(due(from, from + day, from + day * 2, 0.5), Duration::ZERO);
    }
}

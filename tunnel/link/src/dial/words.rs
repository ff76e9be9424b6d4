//! TLS errors in words that help.

pub(super) const NO_ALPN: &str = "it does not speak moorline/1: no hub, or a proxy that ends TLS is in the way";

/// The TLS failure in a QUIC error: codes 0x100 to 0x1ff are 0x100 plus the alert (RFC 9001 §4.8).
pub(super) fn tls_cause(error: &quinn::ConnectionError) -> Option<String> {
    let alert = |code: u64| match code {
        0x100..=0x1ff => u8::try_from(code - 0x100).ok().map(rustls::AlertDescription::from),
        _ => None,
    };
    match error {
        quinn::ConnectionError::TransportError(error) => alert(error.code.into()).map(|_| words(&error.reason)),
        quinn::ConnectionError::ConnectionClosed(close) => {
            alert(close.error_code.into()).map(|alert| words(&format!("received fatal alert: {alert:?}")))
        }
        _ => None,
    }
}

/// What a TLS error means for whoever has to mend it.
pub(super) fn words(error: &str) -> String {
    let (theirs, ours) = ("the hub's certificate", "the hub refused this agent's certificate");
    let has = |text: &str| error.contains(text);
    if has("received fatal alert") {
        if has("CertificateExpired") {
            return format!("{ours}: expired or not valid yet; check the clocks of both, or join again");
        } else if has("UnknownCA") {
            return format!("{ours}: it comes from an authority that the hub does not know; join again");
        } else if has("NoApplicationProtocol") {
            return NO_ALPN.into();
        } else if has("Certificate") || has("AccessDenied") || has("DecryptError") {
            return format!("{ours}: it names nobody who may dial in ({error})");
        }
    } else if has("not valid yet") || has("NotValidYet") {
        return format!("{theirs} is not valid yet: is this machine's clock right? ({error})");
    } else if has("expired") || has("Expired") {
        return format!("{theirs} has expired: is this machine's clock right? ({error})");
    } else if has("UnknownIssuer") || has("BadSignature") {
        return format!(
            "{theirs} comes from an authority that this agent does not trust: is this the right hub? If its authority was \
             replaced while this agent was away, join again with a new token"
        );
    } else if has("wrong identity") || has("WrongIdentity") {
        return format!("{theirs} is somebody else's ({error})");
    } else if has("InvalidPurpose") {
        return format!("{theirs} is not made for servers ({error})");
    }
    error.to_owned()
}

//! What the audit log says of recordings whose sessions' records cannot say it.

use super::Lost;
use crate::audit::{self, AuditUser, Event, ObjectRef, ResponseStatus, Stage};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

impl Lost {
    /// The record of it. `who` keeps the folder.
    pub fn event(self, who: &str) -> Event {
        let now = audit::now();
        let verb = if self.sha256.is_empty() { "remove" } else { "seal" };
        let request_uri = format!("/auth/recordings/{}", self.name);
        let mut annotations = BTreeMap::from([("moorline.dev/recording", self.name)]);
        if !self.sha256.is_empty() {
            annotations.insert("moorline.dev/recording-sha256", self.sha256);
        }
        Event {
            audit_id: uuid::Uuid::new_v4().to_string(),
            stage: Stage::ResponseComplete,
            request_uri,
            verb: verb.to_owned(),
            user: AuditUser { username: who.to_owned(), uid: String::new(), groups: Vec::new() },
            impersonated_user: None,
            source_ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST).to_string()],
            user_agent: String::new(),
            object_ref: Some(ObjectRef {
                resource: "recordings".to_owned(),
                namespace: String::new(),
                name: String::new(),
                api_group: "moorline.dev".to_owned(),
                api_version: "v1alpha1".to_owned(),
                subresource: String::new(),
            }),
            response_status: Some(ResponseStatus { code: 200 }),
            request_received_timestamp: now.clone(),
            stage_timestamp: now,
            annotations,
        }
    }
}

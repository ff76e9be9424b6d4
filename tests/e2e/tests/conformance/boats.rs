//! The kinds of the table, and the same as custom resource definitions.

use moorline_apiserver::{Column, KindSpec, Scale, Spec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Flag {
    Red,
    Green,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Berth {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BoatSpec {
    #[schemars(range(min = 0, max = 400))]
    pub metres: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub crew: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub berths: Option<Vec<Berth>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flag: Option<Flag>,
    #[serde(default = "one")]
    pub replicas: i64,
}

fn one() -> i64 {
    1
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct BoatStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
}

impl Spec for BoatSpec {
    type Status = BoatStatus;
    const KIND: &'static str = "Boat";
    const PLURAL: &'static str = "boats";
    const SINGULAR: &'static str = "boat";
    const SHORT_NAMES: &'static [&'static str] = &["bt"];
}

/// What depends on a boat.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct LineSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub colour: Option<String>,
}

impl Spec for LineSpec {
    type Status = BoatStatus;
    const KIND: &'static str = "Line";
    const PLURAL: &'static str = "lines";
    const SINGULAR: &'static str = "line";
}

/// What is served in two versions.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct BuoySpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub colour: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lit: Option<bool>,
}

/// The same, in its newer version.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct NewBuoySpec(pub BuoySpec);

impl Spec for BuoySpec {
    type Status = BoatStatus;
    const GROUP: &'static str = "fleet.example";
    const KIND: &'static str = "Buoy";
    const PLURAL: &'static str = "buoys";
    const SINGULAR: &'static str = "buoy";
}
impl Spec for NewBuoySpec {
    type Status = BoatStatus;
    const GROUP: &'static str = "fleet.example";
    const VERSION: &'static str = "v1beta1";
    const KIND: &'static str = "Buoy";
    const PLURAL: &'static str = "buoys";
    const SINGULAR: &'static str = "buoy";
}

/// Where all objects of the table are, those that depend on others first.
pub const PATHS: [&str; 3] =
    ["moorline.dev/v1alpha1/lines", "moorline.dev/v1alpha1/boats", "fleet.example/v1beta1/buoys"];

pub fn kinds() -> Vec<KindSpec> {
    let boats = KindSpec::of::<BoatSpec>()
        .column(Column::at("Place", "/status/place").described("where it is"))
        .column(Column::at("Metres", "/spec/metres").typed("integer").described("how long it is").wide())
        .scale(Scale { spec: "/spec/replicas", status: "/status/replicas", selector: Some("/status/selector") })
        .owns(&["lines"]);
    let buoys = KindSpec::of::<BuoySpec>().also(KindSpec::of::<NewBuoySpec>(), |_| {}, |_| {});
    vec![boats, KindSpec::of::<LineSpec>(), buoys]
}

/// The same kinds for the real API server.
pub fn definitions() -> Vec<Value> {
    let definition = |kind: &KindSpec, names: Value, columns: Value, scale: Value| {
        let mut schema = kind.schema().clone();
        schema["properties"]["metadata"] = json!({ "type": "object" });
        let plural = names["plural"].clone();
        let mut subresources = json!({ "status": {} });
        if !scale.is_null() {
            subresources["scale"] = scale;
        }
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{}.moorline.dev", plural.as_str().unwrap_or_default()) },
            "spec": {
                "group": "moorline.dev", "scope": "Cluster", "names": names,
                "versions": [{
                    "name": "v1alpha1", "served": true, "storage": true, "subresources": subresources,
                    "schema": { "openAPIV3Schema": schema }, "additionalPrinterColumns": columns,
                }],
            },
        })
    };
    let kinds = kinds();
    let age = json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" });
    let boats = definition(
        &kinds[0],
        json!({ "kind": "Boat", "plural": "boats", "singular": "boat", "shortNames": ["bt"], "listKind": "BoatList" }),
        json!([
            { "name": "Place", "type": "string", "jsonPath": ".status.place", "description": "where it is" },
            { "name": "Metres", "type": "integer", "jsonPath": ".spec.metres", "description": "how long it is", "priority": 1 },
            age,
        ]),
        json!({
            "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }),
    );
    let lines = definition(
        &kinds[1],
        json!({ "kind": "Line", "plural": "lines", "singular": "line", "listKind": "LineList" }),
        json!([age]),
        Value::Null,
    );
    let mut buoys = definition(
        &kinds[2],
        json!({ "kind": "Buoy", "plural": "buoys", "singular": "buoy", "listKind": "BuoyList" }),
        json!([age]),
        Value::Null,
    );
    buoys["metadata"]["name"] = "buoys.fleet.example".into();
    buoys["spec"]["group"] = "fleet.example".into();
    let mut newer = buoys["spec"]["versions"][0].clone();
    (newer["name"], newer["storage"]) = ("v1beta1".into(), false.into());
    if let Some(versions) = buoys["spec"]["versions"].as_array_mut() {
        versions.push(newer);
    }
    vec![boats, lines, buoys]
}

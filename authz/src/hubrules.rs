//! What users may do in the hub's API besides what [`crate::access::hub_api`] gives everybody: rules as data.

use crate::identity::Identity;

/// One rule. It only ever adds to what somebody may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HubRule {
    /// Users that hold it.
    pub users: Vec<String>,
    /// Groups whose members hold it.
    pub groups: Vec<String>,
    /// Plural of the kind, or `plural/subresource`.
    pub resource: String,
    /// Kubernetes verbs. There is no wildcard.
    pub verbs: Vec<String>,
    /// The objects that it is about; `None`: those of any name.
    pub names: Option<Vec<String>>,
    /// A JSON pointer into the object, and the values of which one has to stand there; `None`: any object. Whoever
    /// publishes such a rule has to see to it that the field never changes.
    pub field: Option<(String, Vec<String>)>,
}

/// What is asked.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Kubernetes verb.
    pub verb: &'a str,
    /// Plural of the kind.
    pub resource: &'a str,
    /// Empty: the object itself.
    pub subresource: &'a str,
    /// Empty: a collection, or a creation.
    pub name: &'a str,
    /// What stands at a JSON pointer in the object; `None` where there is no object, or no text there.
    pub field: &'a dyn Fn(&str) -> Option<String>,
}

/// All rules that hold now.
pub struct HubRules<'a>(pub &'a [HubRule]);

impl HubRules<'_> {
    fn of<'a>(&'a self, who: &'a Identity, verb: &'a str, kind: &'a str) -> impl Iterator<Item = &'a HubRule> {
        let holds = move |rule: &&HubRule| {
            rule.resource == kind
                && rule.verbs.iter().any(|v| v == verb)
                && (rule.users.contains(&who.user) || rule.groups.iter().any(|group| who.in_group(group)))
        };
        self.0.iter().filter(holds)
    }

    /// Whether somebody may do this. A list or watch is permitted where any rule of its kind is held: then
    /// [`Self::shows`] says what is in it.
    pub fn permit(&self, who: &Identity, asked: &Asked<'_>) -> bool {
        let kind = match asked.subresource {
            "" => asked.resource.to_owned(),
            sub => format!("{}/{sub}", asked.resource),
        };
        let many = matches!(asked.verb, "list" | "watch") && asked.name.is_empty();
        self.of(who, asked.verb, &kind).any(|rule| many || rule.covers(asked.name, asked.field))
    }

    /// Whether an object is in somebody's lists and watches.
    pub fn shows(&self, who: &Identity, resource: &str, name: &str, field: &dyn Fn(&str) -> Option<String>) -> bool {
        ["list", "watch"].iter().any(|verb| self.of(who, verb, resource).any(|rule| rule.covers(name, field)))
    }
}

impl HubRule {
    fn covers(&self, name: &str, field: &dyn Fn(&str) -> Option<String>) -> bool {
        self.names.as_ref().is_none_or(|names| names.iter().any(|n| n == name))
            && self.field.as_ref().is_none_or(|(at, values)| field(at).is_some_and(|value| values.contains(&value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(resource: &str, verbs: &[&str]) -> HubRule {
        let verbs = verbs.iter().map(|v| (*v).to_owned()).collect();
        HubRule { users: vec!["ann".to_owned()], resource: resource.to_owned(), verbs, ..HubRule::default() }
    }

    #[test]
    fn s52_a_rule_opens_what_it_names_and_nothing_beside_it() {
        let named = HubRule { names: Some(vec!["a".to_owned()]), ..rule("projects", &["get", "list"]) };
        let field = Some(("/spec/project".to_owned(), vec!["web".to_owned()]));
        let fielded = HubRule { field, ..rule("spaces", &["create", "list", "get"]) };
        let all = [named, fielded, rule("clusters/status", &["get"])];
        let (rules, ann) = (HubRules(&all), Identity::new("ann", ["dev"]));
        let ask = |who: &Identity, verb, resource, subresource, name, project: Option<&str>| {
            let field = |at: &str| project.filter(|_| at == "/spec/project").map(str::to_owned);
            rules.permit(who, &Asked { verb, resource, subresource, name, field: &field })
        };
        assert!(ask(&ann, "get", "projects", "", "a", None));
        assert!(!ask(&ann, "get", "projects", "", "b", None));
        assert!(!ask(&ann, "watch", "projects", "", "", None), "list is not watch");
        assert!(ask(&ann, "list", "projects", "", "", None));
        assert!(rules.shows(&ann, "projects", "a", &|_| None) && !rules.shows(&ann, "projects", "aa", &|_| None));
        assert!(ask(&ann, "create", "spaces", "", "", Some("web")));
        assert!(!ask(&ann, "create", "spaces", "", "", Some("shop")) && !ask(&ann, "create", "spaces", "", "", None));
        assert!(!ask(&ann, "get", "clusters", "", "x", None) && ask(&ann, "get", "clusters", "status", "x", None));
        let other = Identity::new("dev", ["ann"]);
        assert!(!ask(&other, "get", "projects", "", "a", None), "a user's rule is not one of a group of that name");
    }
}

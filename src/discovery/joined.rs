//! One fleet of what everybody says.

use std::collections::HashMap;

use crate::fleet::TargetSettings;

/// The configured targets, then those of each source in its order. A name and an address belong to who came first; for each
/// source, who was left out and why.
pub(super) fn join<'a>(
    configured: &'a [TargetSettings],
    sources: impl Iterator<Item = (&'a str, &'a [TargetSettings])>,
) -> (Vec<TargetSettings>, Vec<Vec<String>>) {
    let mut targets = configured.to_vec();
    let (mut names, mut addresses) = (HashMap::<&str, &str>::new(), HashMap::<&str, &str>::new());
    for TargetSettings { name, address, .. } in configured {
        names.insert(name, "the configuration");
        addresses.insert(address, name);
    }
    let mut all_left_out = Vec::new();
    for (source, view) in sources {
        let mut left_out = Vec::new();
        for target in view {
            let TargetSettings { name, address, .. } = target;
            if let Some(owner) = names.get(&**name) {
                left_out.push(format!("{name} at {address}: {owner} has a target of this name"));
            } else if let Some(other) = addresses.get(&**address) {
                left_out.push(format!("{name} at {address}: this is the address of {other}"));
            } else {
                names.insert(name, source);
                addresses.insert(address, name);
                targets.push(target.clone());
            }
        }
        all_left_out.push(left_out);
    }
    (targets, all_left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> TargetSettings {
        let (name, address) = text.split_once('@').unwrap();
        TargetSettings::new(name, address)
    }

    #[test]
    fn names_and_addresses_belong_to_who_came_first() {
        let list = |texts: &[&str]| texts.iter().map(|text| target(text)).collect::<Vec<_>>();
        let (configured, one, other) =
            (list(&["a@h:1"]), list(&["a@h:2", "b@h:3"]), list(&["b@h:4", "c@h:1", "d@h:3", "e@h:5", "e@h:6"]));
        let (targets, left_out) = join(&configured, [("one", &*one), ("other", &*other)].into_iter());
        assert_eq!(targets, list(&["a@h:1", "b@h:3", "e@h:5"]));
        assert_eq!(left_out[0], ["a at h:2: the configuration has a target of this name"]);
        let expected = [
            "b at h:4: one has a target of this name",
            "c at h:1: this is the address of a",
            "d at h:3: this is the address of b",
            "e at h:6: other has a target of this name",
        ];
        assert_eq!(left_out[1], expected);
    }
}

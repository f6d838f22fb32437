//! The examples as templates: `dev up` runs exactly what the documentation shows.

use anyhow::{Result, bail};

/// `examples/envoy/envoy.yaml`.
pub(crate) const ENVOY: &str = include_str!("../../../examples/envoy/envoy.yaml");
/// `examples/control-plane.yaml`.
pub(crate) const CONTROL_PLANE: &str = include_str!("../../../examples/control-plane.yaml");
/// `examples/sidecar.yaml`.
pub(crate) const SIDECAR: &str = include_str!("../../../examples/sidecar.yaml");
/// `examples/nats.conf`.
pub(crate) const NATS: &str = include_str!("../../../examples/nats.conf");
/// `examples/policies/orders.yaml`.
pub(crate) const POLICY: &str = include_str!("../../../examples/policies/orders.yaml");

/// `template` with every `${NAME}` replaced by its value; the comment that explains them is left alone.
pub(crate) fn fill(template: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut filled = template.to_owned();
    for (name, value) in values {
        filled = filled.replace(&format!("${{{name}}}"), value);
    }
    let is_open = |line: &&str| line.contains("${") && !line.trim_start().starts_with('#');
    if let Some(line) = filled.lines().find(is_open) {
        bail!("a placeholder of the template has no value: {}", line.trim());
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_or_missed() {
        assert_eq!(fill("# ${X}\na: ${A}/${A}", &[("A", "1")]).unwrap(), "# ${X}\na: 1/1");
        assert!(fill("a: ${B}", &[("A", "1")]).unwrap_err().to_string().contains("${B}"));
    }
}

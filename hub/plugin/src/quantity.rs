//! Kubernetes' quantities, in thousandths.

/// A quantity in thousandths of its unit; `None`: not one.
///
/// The forms of <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/> without exponents. What is
/// finer than a thousandth is rounded up, as Kubernetes does.
pub fn parse(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let parts: i128 = match suffix {
        "n" => 1_000_000,
        "u" => 1000,
        _ => 1,
    };
    let unit: i128 = match suffix {
        "n" | "u" | "m" => 1,
        "" => 1000,
        "k" => 1000 * 1000,
        "M" => 1000 * 1000i128.pow(2),
        "G" => 1000 * 1000i128.pow(3),
        "T" => 1000 * 1000i128.pow(4),
        "P" => 1000 * 1000i128.pow(5),
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000i128 << 50,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 18 || fraction.len() > 9 {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
    let scale = 10i128.pow(u32::try_from(fraction.len()).ok()?);
    let amount = digits(whole)? * unit + digits(fraction)? * unit / scale;
    Some((amount + parts - 1) / parts)
}

/// As an API server writes it, so that what comes back is what was sent.
pub fn write(thousandths: i128) -> String {
    if thousandths % 1000 != 0 {
        return format!("{thousandths}m");
    }
    let mut number = thousandths / 1000;
    let mut suffixes = ["k", "M", "G", "T", "P", "E"].into_iter();
    let mut suffix = "";
    while number != 0 && number % 1000 == 0 {
        let Some(next) = suffixes.next() else { break };
        (number, suffix) = (number / 1000, next);
    }
    format!("{number}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        let table = [
            ("1", 1000),
            ("500m", 500),
            ("1.5", 1500),
            ("2k", 2_000_000),
            ("1Ki", 1_024_000),
            ("0.5Gi", 536_870_912_000),
            (".5", 500),
            ("156340625n", 157),
            ("1000000n", 1),
            ("0n", 0),
            ("1500u", 2),
        ];
        for (text, thousandths) in table {
            assert_eq!(parse(text), Some(thousandths), "{text}");
        }
        for bad in ["", "x", "1x", "-1", "1e3", "m", "1.2.3", "1 ", "9999999999999999999"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for (thousandths, text) in
            [(1500, "1500m"), (1000, "1"), (1_000_000, "1k"), (1_024_000, "1024"), (0, "0"), (20_000_000_000, "20M")]
        {
            assert_eq!(write(thousandths), text);
            assert_eq!(parse(text), Some(thousandths));
        }
    }
}

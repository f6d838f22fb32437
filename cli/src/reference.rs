//! `atmctl reference`: every command and option as Markdown, from the definitions that the parser itself uses.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command};

/// The whole reference.
pub(crate) fn markdown(mut root: Command) -> String {
    root.build();
    let mut out = String::from(
        "# atmctl\n\nMade by `atmctl reference > docs/cli.md` from the program itself. Options of every command come first.\n",
    );
    let globals: Vec<&Arg> = root.get_arguments().filter(|arg| arg.is_global_set()).collect();
    options(&mut out, &globals);
    for command in root.get_subcommands().filter(|command| shown(command)) {
        describe(&mut out, command, "atmctl");
    }
    out
}

fn shown(command: &Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

fn describe(out: &mut String, command: &Command, parent: &str) {
    let name = format!("{parent} {}", command.get_name());
    let children: Vec<&Command> = command.get_subcommands().filter(|command| shown(command)).collect();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let arguments: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_global_set() && !arg.is_hide_set() && !is_help(arg))
        .collect();
    if children.is_empty() {
        let positional = arguments.iter().filter(|arg| arg.is_positional());
        let words =
            positional.map(|arg| placeholder(arg)).fold(String::new(), |words, one| words + " " + &one);
        // Writing to a String does not fail.
        let _ = write!(out, "\n## `{name}{words}`\n\n{about}.\n");
        options(out, &arguments);
    }
    for child in children {
        describe(out, child, &name);
    }
}

fn is_help(arg: &Arg) -> bool {
    matches!(arg.get_id().as_str(), "help" | "version")
}

fn placeholder(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let name = names.first().map_or_else(|| arg.get_id().as_str().to_uppercase(), ToString::to_string);
    let many = matches!(arg.get_action(), ArgAction::Append);
    let name = if many { format!("{name}...") } else { name };
    if arg.is_required_set() { name } else { format!("[{name}]") }
}

fn options(out: &mut String, arguments: &[&Arg]) {
    if arguments.is_empty() {
        return;
    }
    out.push_str("\n| Option | Meaning |\n|---|---|\n");
    for arg in arguments {
        let _ = writeln!(out, "| `{}` | {} |", flag(arg), meaning(arg));
    }
}

fn flag(arg: &Arg) -> String {
    let Some(long) = arg.get_long() else { return placeholder(arg).trim_matches(['[', ']']).to_owned() };
    let takes_value = arg.get_action().takes_values();
    let value =
        if takes_value { format!(" {}", placeholder(arg).trim_matches(['[', ']'])) } else { String::new() };
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    format!("{short}--{long}{value}")
}

fn meaning(arg: &Arg) -> String {
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
    if let Some(variable) = arg.get_env() {
        let _ = write!(text, " (or `{}`)", variable.to_string_lossy());
    }
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|one| !one.is_hide_set())
        .map(|one| one.get_name().to_owned())
        .collect();
    if !values.is_empty() && arg.get_action().takes_values() {
        let _ = write!(text, "; one of {}", values.join(", "));
    }
    text
}

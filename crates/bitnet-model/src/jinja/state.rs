//! What an interpreter knows while a template runs: its variables, and what values refer to by number.

use std::cell::RefCell;

use super::ast::{Name, Tree};
use super::budget::{Budget, Res, fail};
use super::value::{Dict, Function, Value};

/// Variables of a template, a loop's turn, a macro's call or a block.
pub(super) struct Scope {
    parent: Option<usize>,
    vars: Vec<(Name, Value)>,
    /// Inside how many loops that are called by themselves.
    pub(super) level: usize,
}

/// A template that runs.
pub(super) struct Interpreter<'t> {
    pub(super) tree: &'t Tree,
    pub(super) budget: &'t Budget,
    pub(super) namespaces: Vec<RefCell<Dict>>,
    pub(super) scopes: Vec<Scope>,
    /// Values that hold on to scopes, so far.
    pub(super) captures: usize,
    /// The variables that the template was given.
    given: Dict,
}

impl<'t> Interpreter<'t> {
    pub(super) fn new(tree: &'t Tree, budget: &'t Budget, given: Dict) -> Self {
        Self {
            tree,
            budget,
            namespaces: Vec::new(),
            scopes: vec![Scope {
                parent: None,
                vars: Vec::new(),
                level: 0,
            }],
            captures: 0,
            given,
        }
    }

    pub(super) fn open(&mut self, parent: usize, level: usize) -> Res<usize> {
        self.budget.make(size_of::<Scope>())?;
        self.scopes.push(Scope {
            parent: Some(parent),
            vars: Vec::new(),
            level,
        });
        Ok(self.scopes.len() - 1)
    }

    /// Drops the scopes from `scope` on, unless a value holds on to one of them.
    pub(super) fn close(&mut self, scope: usize, captures: usize) {
        if self.captures == captures {
            self.scopes.truncate(scope);
        }
    }

    pub(super) fn set(&mut self, scope: usize, name: Name, value: Value) -> Res<()> {
        self.budget.make(size_of::<(Name, Value)>())?;
        let vars = &mut self.scopes[scope].vars;
        match vars.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => vars.push((name, value)),
        }
        Ok(())
    }

    /// Sets a variable by its text, if the template mentions it anywhere.
    pub(super) fn set_named(&mut self, scope: usize, name: &str, value: Value) -> Res<()> {
        match self.tree.names.iter().position(|other| other == name) {
            Some(at) => self.set(scope, at as Name, value),
            None => Ok(()),
        }
    }

    /// The value of a variable, of the template or of those that every template has.
    pub(super) fn lookup(&self, scope: usize, name: Name) -> Value {
        let mut next = Some(scope);
        while let Some(at) = next {
            let scope = &self.scopes[at];
            if let Some((_, value)) = scope.vars.iter().find(|(other, _)| *other == name) {
                return value.clone();
            }
            next = scope.parent;
        }
        let name = &self.tree.names[name as usize][..];
        if let Some(value) = self.given.get_str(name) {
            return value.clone();
        }
        match name {
            "range" => Value::Function(Function::Range),
            "dict" => Value::Function(Function::Dict),
            "namespace" => Value::Function(Function::Namespace),
            "cycler" => Value::Function(Function::Cycler),
            "joiner" => Value::Function(Function::Joiner),
            "lipsum" => Value::Function(Function::Lipsum),
            "raise_exception" => Value::Function(Function::RaiseException),
            "strftime_now" => Value::Function(Function::StrftimeNow),
            _ => Value::undefined(format!("'{name}' is undefined")),
        }
    }
}

/// Namespaces of transformers take no names that begin with an underscore.
pub(super) fn check_attribute(name: &str) -> Res<()> {
    if name.starts_with('_') {
        return fail(format!(
            "chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'"
        ));
    }
    Ok(())
}

//! Runs a tree: statements, scopes and expressions.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::args::Args;
use super::ast::{CallArgs, Comparison, Const, Expr, Filter, Kind, Node, Stmt, Target};
use super::budget::{Failure, Res, Text, fail};
use super::state::{Interpreter, check_attribute};
use super::text::write_str;
use super::value::{Dict, Loop, Value};
use super::{checks, filters, operators, ops, plain};

/// What follows a statement.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

impl<'t> Interpreter<'t> {
    /// The text of the template.
    pub(super) fn run(&mut self) -> Res<String> {
        let tree = self.tree;
        let mut out = Text::new(self.budget);
        self.body(&tree.body, 0, &mut out)?;
        Ok(out.into_string())
    }

    fn body(&mut self, nodes: &'t [Node], scope: usize, out: &mut Text<'t>) -> Res<Flow> {
        self.budget.enter()?;
        let mut flow = Flow::Next;
        for node in nodes {
            flow = self
                .statement(node, scope, out)
                .map_err(|failure| at_line(failure, node.line))?;
            if flow != Flow::Next {
                break;
            }
        }
        self.budget.leave();
        Ok(flow)
    }

    fn statement(&mut self, node: &'t Node, scope: usize, out: &mut Text<'t>) -> Res<Flow> {
        self.budget.step()?;
        match &node.kind {
            Stmt::Data(text) => out.push(text)?,
            Stmt::Print(expr) => {
                let value = self.eval(expr, scope)?;
                write_str(&value, self, out)?;
            }
            Stmt::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.eval(test, scope)?.truth() {
                        return self.body(body, scope, out);
                    }
                }
                return self.body(otherwise, scope, out);
            }
            Stmt::For(index) => {
                let items = self.eval(&self.tree.loops[*index].iter, scope)?;
                let level = self.scopes[scope].level;
                return self.for_loop(*index, &items, scope, level, 0, out);
            }
            Stmt::Set(target, expr) => {
                let value = self.eval(expr, scope)?;
                self.assign(target, value, scope)?;
            }
            Stmt::SetBlock(target, filters, body) => {
                let (flow, value) = self.captured(body, scope)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.filtered(value, filters, scope)?;
                self.assign(target, value, scope)?;
            }
            Stmt::FilterBlock(filters, body) => {
                let (flow, value) = self.captured(body, scope)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.filtered(value, filters, scope)?;
                write_str(&value, self, out)?;
            }
            Stmt::With(values, body) => {
                let captures = self.captures;
                let inner = self.open(scope, self.scopes[scope].level)?;
                for (target, expr) in values {
                    let value = self.eval(expr, scope)?;
                    self.assign(target, value, inner)?;
                }
                let flow = self.body(body, inner, out)?;
                self.close(inner, captures);
                return Ok(flow);
            }
            Stmt::Scope(body) => {
                let captures = self.captures;
                let inner = self.open(scope, self.scopes[scope].level)?;
                let flow = self.body(body, inner, out)?;
                self.close(inner, captures);
                return Ok(flow);
            }
            Stmt::AutoEscape(on, body) => {
                if self.eval(on, scope)?.truth() {
                    return fail("autoescape is not implemented");
                }
                let captures = self.captures;
                let inner = self.open(scope, self.scopes[scope].level)?;
                let flow = self.body(body, inner, out)?;
                self.close(inner, captures);
                return Ok(flow);
            }
            Stmt::Macro(index) => {
                self.captures += 1;
                self.set_named(scope, &self.tree.macros[*index].name, Value::Macro(*index, scope))?;
            }
            Stmt::Call(call, index) => {
                self.captures += 1;
                let caller = Value::Macro(*index, scope);
                let Kind::Call(function, args) = &*call.kind else {
                    return Ok(Flow::Next);
                };
                let function = self.eval(function, scope)?;
                let mut args = self.args(args, scope)?;
                args.keywords.push(("caller".to_owned(), caller));
                let value = self.call(&function, args)?;
                write_str(&value, self, out)?;
            }
            Stmt::Break => return Ok(Flow::Break),
            Stmt::Continue => return Ok(Flow::Continue),
            Stmt::NoLoader => return fail("no loader for this environment specified"),
        }
        Ok(Flow::Next)
    }

    /// The text of a body in a scope of its own.
    fn captured(&mut self, body: &'t [Node], scope: usize) -> Res<(Flow, Value)> {
        let captures = self.captures;
        let inner = self.open(scope, self.scopes[scope].level)?;
        let mut text = Text::new(self.budget);
        let flow = self.body(body, inner, &mut text)?;
        self.close(inner, captures);
        Ok((flow, text.into_value()))
    }

    /// The text of a macro's body.
    pub(super) fn macro_text(&mut self, index: usize, scope: usize) -> Res<Value> {
        let tree = self.tree;
        let mut text = Text::new(self.budget);
        self.body(&tree.macros[index].body, scope, &mut text)?;
        Ok(text.into_value())
    }

    /// The text of a recursive loop that is called with new items.
    pub(super) fn loop_text(
        &mut self,
        index: usize,
        items: &Value,
        scope: usize,
        level: usize,
    ) -> Res<Value> {
        let mut text = Text::new(self.budget);
        self.for_loop(index, items, scope, self.scopes[scope].level, level, &mut text)?;
        Ok(text.into_value())
    }

    fn for_loop(
        &mut self,
        index: usize,
        items: &Value,
        scope: usize,
        scope_level: usize,
        level: usize,
        out: &mut Text<'t>,
    ) -> Res<Flow> {
        let node = &self.tree.loops[index];
        let mut items = items.items(self.budget)?;
        if let Some(test) = &node.test {
            let mut kept = Vec::new();
            for item in items {
                let captures = self.captures;
                let inner = self.open(scope, scope_level)?;
                self.assign(&node.target, item.clone(), inner)?;
                if self.eval(test, inner)?.truth() {
                    kept.push(item);
                }
                self.close(inner, captures);
            }
            items = kept;
        }
        let depth = self.budget.deeper(items.iter())?;
        if node.recursive {
            self.captures += 1;
        }
        let state = Rc::new(Loop {
            items,
            depth,
            index: Cell::new(0),
            level,
            changed: RefCell::new(None),
            recursive: node.recursive.then_some((index, scope)),
        });
        let mut has_ended = false;
        for (at, item) in state.items.iter().enumerate() {
            state.index.set(at);
            let captures = self.captures;
            let inner = self.open(scope, scope_level)?;
            self.assign(&node.target, item.clone(), inner)?;
            self.set_named(inner, "loop", Value::Loop(state.clone()))?;
            let flow = self.body(&node.body, inner, out)?;
            self.close(inner, captures);
            has_ended |= flow == Flow::Next;
            if flow == Flow::Break {
                break;
            }
        }
        // As in Jinja2, `else` comes after a loop of which no turn has reached its end, be it by break or continue.
        if has_ended || node.otherwise.is_empty() {
            return Ok(Flow::Next);
        }
        let captures = self.captures;
        let inner = self.open(scope, scope_level)?;
        let flow = self.body(&node.otherwise, inner, out)?;
        self.close(inner, captures);
        Ok(flow)
    }

    fn assign(&mut self, target: &Target, value: Value, scope: usize) -> Res<()> {
        match target {
            Target::Name(name) => self.set(scope, *name, value),
            Target::Attribute(name, attribute) => {
                let Value::Namespace(index) = self.lookup(scope, *name) else {
                    return fail("cannot assign attribute on non-namespace object");
                };
                check_attribute(attribute)?;
                let key = Value::str(attribute);
                self.namespaces[index]
                    .borrow_mut()
                    .insert(key, value, self.budget)
            }
            Target::Tuple(targets) => {
                if !value.is_iterable() {
                    return fail(format!("cannot unpack non-iterable {} object", value.type_name()));
                }
                let items = value.items(self.budget)?;
                if items.len() != targets.len() {
                    return fail(format!(
                        "{} values to unpack, and {} were expected",
                        items.len(),
                        targets.len()
                    ));
                }
                targets
                    .iter()
                    .zip(items)
                    .try_for_each(|(target, item)| self.assign(target, item, scope))
            }
        }
    }

    fn filtered(&mut self, mut value: Value, filters: &'t [Filter], scope: usize) -> Res<Value> {
        for filter in filters {
            let args = self.args(&filter.args, scope)?;
            value =
                filters::filter(&value, &filter.name, &args, self).map_err(|e| at_line(e, filter.line))?;
        }
        Ok(value)
    }

    fn args(&mut self, args: &'t CallArgs, scope: usize) -> Res<Args> {
        let mut all = Args::default();
        for arg in &args.positional {
            all.positional.push(self.eval(arg, scope)?);
        }
        for (name, arg) in &args.keywords {
            all.keywords.push((name.clone(), self.eval(arg, scope)?));
        }
        if let Some(star) = &args.star {
            let value = self.eval(star, scope)?;
            all.positional.extend(value.items(self.budget)?);
        }
        if let Some(star) = &args.star_star {
            let Value::Dict(dict) = self.eval(star, scope)? else {
                return fail("argument after ** must be a mapping");
            };
            for (key, value) in dict.entries() {
                let Value::Str(key) = key else {
                    return fail("keywords must be strings");
                };
                if all.keywords.iter().any(|(name, _)| **name == **key) {
                    return fail(format!("got multiple values for keyword argument '{key}'"));
                }
                all.keywords.push((key.to_string(), value.clone()));
            }
        }
        Ok(all)
    }

    /// The value of an expression.
    pub(super) fn eval(&mut self, expr: &'t Expr, scope: usize) -> Res<Value> {
        self.budget.enter().map_err(|e| at_line(e, expr.line))?;
        let value = self.eval_inside(expr, scope).map_err(|e| at_line(e, expr.line))?;
        self.budget.leave();
        Ok(value)
    }

    fn all(&mut self, exprs: &'t [Expr], scope: usize) -> Res<Vec<Value>> {
        exprs.iter().map(|expr| self.eval(expr, scope)).collect()
    }

    fn part(&mut self, expr: &'t Option<Expr>, scope: usize) -> Res<Value> {
        expr.as_ref()
            .map_or(Ok(Value::None), |expr| self.eval(expr, scope))
    }

    fn eval_inside(&mut self, expr: &'t Expr, scope: usize) -> Res<Value> {
        Ok(match &*expr.kind {
            Kind::Const(constant) => match constant {
                Const::None => Value::None,
                Const::Bool(b) => Value::Bool(*b),
                Const::Int(n) => Value::Int(*n),
                Const::Float(x) => Value::Float(*x),
                Const::Str(text) => self.budget.text(&text[..])?,
            },
            Kind::Name(name) => self.lookup(scope, *name),
            Kind::List(items) => {
                let items = self.all(items, scope)?;
                self.budget.list(items)?
            }
            Kind::Tuple(items) => {
                let items = self.all(items, scope)?;
                self.budget.tuple(items)?
            }
            Kind::Dict(items) => {
                let mut dict = Dict::default();
                for (key, value) in items {
                    let (key, value) = (self.eval(key, scope)?, self.eval(value, scope)?);
                    dict.insert(key, value, self.budget)?;
                }
                Value::Dict(Rc::new(dict))
            }
            Kind::Attribute(of, name) => {
                let of = self.eval(of, scope)?;
                self.attribute(&of, name)?
            }
            Kind::Item(of, key) => {
                let (of, key) = (self.eval(of, scope)?, self.eval(key, scope)?);
                self.item(&of, &key)?
            }
            Kind::Slice(of, start, stop, step) => {
                let of = self.eval(of, scope)?;
                let (start, stop, step) = (
                    self.part(start, scope)?,
                    self.part(stop, scope)?,
                    self.part(step, scope)?,
                );
                ops::slice(&of, &start, &stop, &step, self.budget)?
            }
            Kind::Call(function, args) => {
                let function = self.eval(function, scope)?;
                let args = self.args(args, scope)?;
                self.call(&function, args)?
            }
            Kind::Filter(of, filter) => {
                let of = self.eval(of, scope)?;
                self.filtered(of, std::slice::from_ref(filter), scope)?
            }
            Kind::Test(of, name, args) => {
                let of = self.eval(of, scope)?;
                let args = self.args(args, scope)?;
                Value::Bool(checks::test(&of, name, &args, self)?)
            }
            Kind::Not(of) => Value::Bool(!self.eval(of, scope)?.truth()),
            Kind::Neg(of) => operators::sign(&self.eval(of, scope)?, true)?,
            Kind::Pos(of) => operators::sign(&self.eval(of, scope)?, false)?,
            Kind::Binary(op, a, b) => {
                let (a, b) = (self.eval(a, scope)?, self.eval(b, scope)?);
                operators::binary(*op, &a, &b, self)?
            }
            Kind::Concat(parts) => {
                let parts = self.all(parts, scope)?;
                plain::concat(&parts, self)?
            }
            Kind::And(a, b) => {
                let a = self.eval(a, scope)?;
                if a.truth() { self.eval(b, scope)? } else { a }
            }
            Kind::Or(a, b) => {
                let a = self.eval(a, scope)?;
                if a.truth() { a } else { self.eval(b, scope)? }
            }
            Kind::Compare(first, others) => {
                let mut left = self.eval(first, scope)?;
                for (comparison, right) in others {
                    let right = self.eval(right, scope)?;
                    if !self.compare(*comparison, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Kind::If(test, then, otherwise) => {
                if self.eval(test, scope)?.truth() {
                    self.eval(then, scope)?
                } else if let Some(otherwise) = otherwise {
                    self.eval(otherwise, scope)?
                } else {
                    Value::undefined(
                        "the inline if-expression evaluated to false and no else section was defined.",
                    )
                }
            }
        })
    }

    fn compare(&self, comparison: Comparison, a: &Value, b: &Value) -> Res<bool> {
        let budget = self.budget;
        Ok(match comparison {
            Comparison::Eq => ops::equal(a, b, budget)?,
            Comparison::Ne => !ops::equal(a, b, budget)?,
            Comparison::Lt => ops::compare(a, b, "<", budget)?.is_some_and(std::cmp::Ordering::is_lt),
            Comparison::Le => ops::compare(a, b, "<=", budget)?.is_some_and(std::cmp::Ordering::is_le),
            Comparison::Gt => ops::compare(a, b, ">", budget)?.is_some_and(std::cmp::Ordering::is_gt),
            Comparison::Ge => ops::compare(a, b, ">=", budget)?.is_some_and(std::cmp::Ordering::is_ge),
            Comparison::In => ops::contains(b, a, budget)?,
            Comparison::NotIn => !ops::contains(b, a, budget)?,
        })
    }
}

fn at_line(mut failure: Failure, line: u32) -> Failure {
    if failure.line == 0 {
        failure.line = line;
    }
    failure
}

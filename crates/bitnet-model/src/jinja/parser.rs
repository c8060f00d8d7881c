//! Tokens to a tree, by the grammar of Jinja2 with the extensions of transformers: `break`, `continue` and `generation`.

use std::collections::HashMap;

use super::ast::{
    CallArgs, Comparison, Const, Expr, Filter, For, Kind, Macro, Name, Node, Op, Stmt, Target, Tree, Uses,
};
use super::budget::{Failure, Res};
use super::lexer::{Tok, Token};
use super::names::{is_filter, is_test};

/// Levels of brackets, operators before their operand, and blocks inside each other.
const NESTING: u32 = 120;
/// Levels of a tree of expressions; a long sum is as deep as it has terms.
const DEPTH: u16 = 500;

pub(super) struct Parser {
    tokens: Vec<Token>,
    at: usize,
    tree: Tree,
    symbols: HashMap<String, Name>,
    nesting: u32,
    /// Inside how many loops of the macro that is read.
    loops: u32,
    /// What the macros that are read use, the innermost last.
    uses: Vec<Uses>,
    /// Inside a condition, where unknown filters and tests are errors only when they are reached.
    soft: bool,
    /// Filters and tests that do not exist, where that is an error at once.
    unknown: Vec<Failure>,
}

/// The tree of a template's tokens.
pub(super) fn parse(tokens: Vec<Token>) -> Res<Tree> {
    let mut parser = Parser {
        tokens,
        at: 0,
        tree: Tree::default(),
        symbols: HashMap::new(),
        nesting: 0,
        loops: 0,
        uses: Vec::new(),
        soft: false,
        unknown: Vec::new(),
    };
    parser.tree.body = parser.body(&[])?;
    match parser.unknown.into_iter().next() {
        Some(failure) => Err(failure),
        None => Ok(parser.tree),
    }
}

impl Parser {
    fn tok(&self) -> &Tok {
        &self.tokens[self.at].tok
    }

    fn look(&self) -> &Tok {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].tok
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].line
    }

    fn advance(&mut self) -> Token {
        let token = self.tokens[self.at].clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn fail<T>(&self, message: impl Into<String>) -> Res<T> {
        Err(Failure {
            message: message.into(),
            line: self.line(),
        })
    }

    fn unexpected<T>(&self, expected: &str) -> Res<T> {
        let found = match self.tok() {
            Tok::End => "the end of the template".to_owned(),
            Tok::BlockEnd => "the end of the statement".to_owned(),
            Tok::VariableEnd => "the end of the expression".to_owned(),
            Tok::Name(name) => format!("{name:?}"),
            Tok::Op(op) => format!("{op:?}"),
            Tok::Str(text) => format!("the string {text:?}"),
            Tok::Int(n) => n.to_string(),
            Tok::Float(x) => x.to_string(),
            Tok::Data(_) | Tok::VariableBegin | Tok::BlockBegin => "text".to_owned(),
        };
        self.fail(format!("expected {expected}, got {found}"))
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.tok(), Tok::Op(found) if *found == op)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.tok(), Tok::Name(found) if found == name)
    }

    fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.advance();
        }
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.advance();
        }
        found
    }

    fn expect_op(&mut self, op: &str) -> Res<()> {
        if self.skip_op(op) {
            Ok(())
        } else {
            self.unexpected(&format!("{op:?}"))
        }
    }

    fn expect_word(&mut self, word: &str) -> Res<()> {
        if self.skip_name(word) {
            Ok(())
        } else {
            self.unexpected(&format!("{word:?}"))
        }
    }

    fn expect_name(&mut self) -> Res<String> {
        match self.tok() {
            Tok::Name(name) => {
                let name = name.clone();
                self.advance();
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    fn nest(&mut self) -> Res<()> {
        self.nesting += 1;
        if self.nesting > NESTING {
            return self.fail("the template nests too deeply");
        }
        Ok(())
    }

    /// Refuses chains of one operator, or of `elif`, that Python could not compile either.
    fn check_chain(&self, len: usize) -> Res<()> {
        if len > usize::from(DEPTH) {
            return self.fail("an expression or condition of the template is too long");
        }
        Ok(())
    }

    fn symbol(&mut self, name: &str) -> Name {
        for uses in &mut self.uses {
            uses.caller |= name == "caller";
            uses.kwargs |= name == "kwargs";
            uses.varargs |= name == "varargs";
        }
        if let Some(&symbol) = self.symbols.get(name) {
            return symbol;
        }
        let symbol = self.tree.names.len() as Name;
        self.tree.names.push(name.to_owned());
        self.symbols.insert(name.to_owned(), symbol);
        symbol
    }

    /// Statements and text up to a statement that begins with one of `ends`, whose word is next.
    fn body(&mut self, ends: &[&str]) -> Res<Vec<Node>> {
        self.nest()?;
        let mut nodes = Vec::new();
        loop {
            let line = self.line();
            let kind = match self.tok() {
                Tok::Data(text) => {
                    let text = text.clone();
                    self.advance();
                    Stmt::Data(text)
                }
                Tok::VariableBegin => {
                    self.advance();
                    let expr = self.tuple(true, &[], false)?;
                    match self.tok() {
                        Tok::VariableEnd => self.advance(),
                        _ => return self.unexpected("the end of the expression"),
                    };
                    Stmt::Print(expr)
                }
                Tok::BlockBegin => {
                    self.advance();
                    if let Tok::Name(name) = self.tok()
                        && ends.contains(&&name[..])
                    {
                        break;
                    }
                    let kind = self.statement()?;
                    self.block_end()?;
                    kind
                }
                Tok::End if ends.is_empty() => break,
                _ => return self.unexpected(&ends.join(" or ")),
            };
            nodes.push(Node { line, kind });
        }
        self.nesting -= 1;
        Ok(nodes)
    }

    fn block_end(&mut self) -> Res<()> {
        match self.tok() {
            Tok::BlockEnd => {
                self.advance();
                Ok(())
            }
            _ => self.unexpected("the end of the statement"),
        }
    }

    /// The rest of a statement's tag, its body, and the word that ends it.
    fn statements(&mut self, ends: &[&str]) -> Res<(Vec<Node>, String)> {
        self.skip_op(":");
        self.block_end()?;
        let body = self.body(ends)?;
        Ok((body, self.expect_name()?))
    }

    /// A body whose conditions do not make those around it any softer.
    fn frame(&mut self, end: &str) -> Res<Vec<Node>> {
        let soft = std::mem::replace(&mut self.soft, false);
        let body = self.statements(&[end])?.0;
        self.soft = soft;
        Ok(body)
    }

    fn statement(&mut self) -> Res<Stmt> {
        let word = self.expect_name()?;
        Ok(match &word[..] {
            "for" => self.for_loop()?,
            "if" => self.condition()?,
            "set" => self.assignment()?,
            "macro" => {
                let name = self.expect_name()?;
                let args = self.signature()?;
                let index = self.macro_body(name.clone(), args, "endmacro")?;
                self.symbol(&name);
                Stmt::Macro(index)
            }
            "call" => {
                let args = if self.is_op("(") {
                    self.signature()?
                } else {
                    Vec::new()
                };
                let call = self.expression()?;
                if !matches!(*call.kind, Kind::Call(..)) {
                    return self.fail("expected call");
                }
                Stmt::Call(call, self.macro_body("caller".to_owned(), args, "endcall")?)
            }
            "filter" => {
                let filters = self.filters(true)?;
                Stmt::FilterBlock(filters, self.frame("endfilter")?)
            }
            "with" => {
                let mut values = Vec::new();
                while !matches!(self.tok(), Tok::BlockEnd) {
                    if !values.is_empty() {
                        self.expect_op(",")?;
                    }
                    let target = self.target(true, false)?;
                    self.expect_op("=")?;
                    values.push((target, self.expression()?));
                }
                Stmt::With(values, self.frame("endwith")?)
            }
            "generation" => {
                let index = self.macro_body("caller".to_owned(), Vec::new(), "endgeneration")?;
                Stmt::Scope(std::mem::take(&mut self.tree.macros[index].body))
            }
            "block" => {
                self.expect_name()?;
                self.skip_name("scoped");
                self.skip_name("required");
                let body = self.frame("endblock")?;
                if matches!(self.tok(), Tok::Name(_)) {
                    self.advance();
                }
                Stmt::Scope(body)
            }
            "autoescape" => {
                let on = self.expression()?;
                Stmt::AutoEscape(on, self.frame("endautoescape")?)
            }
            "print" => Stmt::Print(self.tuple(true, &[], false)?),
            "break" | "continue" if self.loops == 0 => return self.fail(format!("'{word}' outside loop")),
            "break" => Stmt::Break,
            "continue" => Stmt::Continue,
            "include" | "extends" | "import" | "from" => {
                while !matches!(self.tok(), Tok::BlockEnd | Tok::End) {
                    self.advance();
                }
                Stmt::NoLoader
            }
            _ => return self.fail(format!("encountered unknown tag {word:?}")),
        })
    }

    fn for_loop(&mut self) -> Res<Stmt> {
        let target = self.target(true, false)?;
        if matches!(&target, Target::Name(name) if self.tree.names[*name as usize] == "loop") {
            return self.fail("can't assign to special loop variable in for-loop target");
        }
        self.expect_word("in")?;
        let iter = self.tuple(false, &["recursive"], false)?;
        let test = if self.skip_name("if") {
            Some(self.expression()?)
        } else {
            None
        };
        let recursive = self.skip_name("recursive");
        let soft = std::mem::replace(&mut self.soft, false);
        self.loops += 1;
        let (body, word) = self.statements(&["endfor", "else"])?;
        self.loops -= 1;
        let otherwise = if word == "else" {
            self.statements(&["endfor"])?.0
        } else {
            Vec::new()
        };
        self.soft = soft;
        self.tree.loops.push(For {
            target,
            iter,
            test,
            body,
            otherwise,
            recursive,
        });
        Ok(Stmt::For(self.tree.loops.len() - 1))
    }

    fn condition(&mut self) -> Res<Stmt> {
        let soft = std::mem::replace(&mut self.soft, true);
        let (mut branches, mut otherwise) = (Vec::new(), Vec::new());
        loop {
            let test = self.tuple(false, &[], false)?;
            let (body, word) = self.statements(&["elif", "else", "endif"])?;
            branches.push((test, body));
            self.check_chain(branches.len())?;
            if word == "else" {
                otherwise = self.statements(&["endif"])?.0;
            }
            if word != "elif" {
                break;
            }
        }
        self.soft = soft;
        Ok(Stmt::If(branches, otherwise))
    }

    fn assignment(&mut self) -> Res<Stmt> {
        let target = self.target(true, true)?;
        if self.skip_op("=") {
            return Ok(Stmt::Set(target, self.tuple(true, &[], false)?));
        }
        let filters = self.filters(false)?;
        Ok(Stmt::SetBlock(target, filters, self.frame("endset")?))
    }

    fn signature(&mut self) -> Res<Vec<(Name, Option<Expr>)>> {
        self.expect_op("(")?;
        let mut args: Vec<(Name, Option<Expr>)> = Vec::new();
        while !self.is_op(")") {
            if !args.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.expect_name()?;
            let name = self.symbol(&name);
            let default = if self.skip_op("=") {
                Some(self.expression()?)
            } else {
                None
            };
            if default.is_none() && args.iter().any(|(_, default)| default.is_some()) {
                return self.fail("non-default argument follows default argument");
            }
            args.push((name, default));
        }
        self.expect_op(")")?;
        Ok(args)
    }

    fn macro_body(&mut self, name: String, args: Vec<(Name, Option<Expr>)>, end: &str) -> Res<usize> {
        let loops = std::mem::replace(&mut self.loops, 0);
        self.uses.push(Uses::default());
        let body = self.frame(end)?;
        self.loops = loops;
        let uses = self.uses.pop().unwrap_or_default();
        self.tree.macros.push(Macro {
            name,
            args,
            body,
            uses,
        });
        Ok(self.tree.macros.len() - 1)
    }

    /// What a value is assigned to; attributes of namespaces only where `with_namespace`.
    fn target(&mut self, with_tuple: bool, with_namespace: bool) -> Res<Target> {
        let (mut parts, mut is_tuple) = (Vec::new(), false);
        loop {
            if !parts.is_empty()
                && (self.is_name("in")
                    || self.is_op(")")
                    || self.is_op("=")
                    || matches!(self.tok(), Tok::BlockEnd))
            {
                break;
            }
            if self.skip_op("(") {
                self.nest()?;
                parts.push(self.target(true, with_namespace)?);
                self.nesting -= 1;
                self.expect_op(")")?;
            } else {
                let name = self.expect_name()?;
                if ["true", "false", "none", "True", "False", "None"].contains(&&name[..]) {
                    return self.fail(format!("can't assign to {name:?}"));
                }
                let name = self.symbol(&name);
                if with_namespace && self.skip_op(".") {
                    parts.push(Target::Attribute(name, self.expect_name()?));
                } else {
                    parts.push(Target::Name(name));
                }
            }
            if !with_tuple || !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match parts.pop() {
            Some(only) if parts.is_empty() && !is_tuple => Ok(only),
            last => {
                parts.extend(last);
                Ok(Target::Tuple(parts))
            }
        }
    }

    fn node(&self, line: u32, kind: Kind) -> Res<Expr> {
        let depth = 1 + deepest(&kind);
        if depth > DEPTH {
            return Err(Failure {
                message: "an expression of the template is too long or too deep".to_owned(),
                line,
            });
        }
        Ok(Expr {
            kind: Box::new(kind),
            line,
            depth,
        })
    }

    fn is_tuple_end(&self, ends: &[&str]) -> bool {
        matches!(self.tok(), Tok::VariableEnd | Tok::BlockEnd | Tok::Op(")"))
            || matches!(self.tok(), Tok::Name(name) if ends.contains(&&name[..]))
    }

    /// An expression, or several with commas.
    fn tuple(&mut self, with_condition: bool, ends: &[&str], in_brackets: bool) -> Res<Expr> {
        let line = self.line();
        let (mut items, mut is_tuple) = (Vec::new(), false);
        loop {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            if self.is_tuple_end(ends) {
                break;
            }
            items.push(if with_condition {
                self.expression()?
            } else {
                self.or()?
            });
            if !self.is_op(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            if let Some(only) = items.pop() {
                return Ok(only);
            }
            if !in_brackets {
                return self.unexpected("an expression");
            }
        }
        self.node(line, Kind::Tuple(items))
    }

    fn expression(&mut self) -> Res<Expr> {
        self.nest()?;
        let (line, known) = (self.line(), self.unknown.len());
        let mut expr = self.or()?;
        if self.is_name("if") {
            let soft = std::mem::replace(&mut self.soft, true);
            self.unknown.truncate(known);
            while self.skip_name("if") {
                let test = self.or()?;
                let otherwise = if self.skip_name("else") {
                    Some(self.expression()?)
                } else {
                    None
                };
                expr = self.node(line, Kind::If(test, expr, otherwise))?;
            }
            self.soft = soft;
        }
        self.nesting -= 1;
        Ok(expr)
    }

    fn or(&mut self) -> Res<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.skip_name("or") {
            let right = self.and()?;
            left = self.node(line, Kind::Or(left, right))?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Res<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.skip_name("and") {
            let right = self.not()?;
            left = self.node(line, Kind::And(left, right))?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Res<Expr> {
        let line = self.line();
        if !self.skip_name("not") {
            return self.compare();
        }
        self.nest()?;
        let operand = self.not()?;
        self.nesting -= 1;
        self.node(line, Kind::Not(operand))
    }

    fn compare(&mut self) -> Res<Expr> {
        let line = self.line();
        let left = self.sum()?;
        let mut comparisons = Vec::new();
        loop {
            let comparison = match self.tok() {
                Tok::Op("==") => Comparison::Eq,
                Tok::Op("!=") => Comparison::Ne,
                Tok::Op("<") => Comparison::Lt,
                Tok::Op("<=") => Comparison::Le,
                Tok::Op(">") => Comparison::Gt,
                Tok::Op(">=") => Comparison::Ge,
                Tok::Name(name) if name == "in" => Comparison::In,
                Tok::Name(name)
                    if name == "not" && matches!(self.look(), Tok::Name(name) if name == "in") =>
                {
                    self.advance();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.advance();
            comparisons.push((comparison, self.sum()?));
        }
        if comparisons.is_empty() {
            return Ok(left);
        }
        self.node(line, Kind::Compare(left, comparisons))
    }

    fn sum(&mut self) -> Res<Expr> {
        let line = self.line();
        let mut left = self.concat()?;
        loop {
            let op = match self.tok() {
                Tok::Op("+") => Op::Add,
                Tok::Op("-") => Op::Sub,
                _ => return Ok(left),
            };
            self.advance();
            let right = self.concat()?;
            left = self.node(line, Kind::Binary(op, left, right))?;
        }
    }

    fn concat(&mut self) -> Res<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        self.check_chain(parts.len())?;
        self.node(line, Kind::Concat(parts))
    }

    fn product(&mut self) -> Res<Expr> {
        let line = self.line();
        let mut left = self.power()?;
        loop {
            let op = match self.tok() {
                Tok::Op("*") => Op::Mul,
                Tok::Op("/") => Op::Div,
                Tok::Op("//") => Op::FloorDiv,
                Tok::Op("%") => Op::Mod,
                _ => return Ok(left),
            };
            self.advance();
            let right = self.power()?;
            left = self.node(line, Kind::Binary(op, left, right))?;
        }
    }

    fn power(&mut self) -> Res<Expr> {
        let line = self.line();
        let mut left = self.unary(true)?;
        while self.skip_op("**") {
            let right = self.unary(true)?;
            left = self.node(line, Kind::Binary(Op::Pow, left, right))?;
        }
        Ok(left)
    }

    fn unary(&mut self, with_filter: bool) -> Res<Expr> {
        self.nest()?;
        let line = self.line();
        let expr = if self.skip_op("-") {
            let operand = self.unary(false)?;
            self.node(line, Kind::Neg(operand))?
        } else if self.skip_op("+") {
            let operand = self.unary(false)?;
            self.node(line, Kind::Pos(operand))?
        } else {
            self.primary()?
        };
        let mut expr = self.postfix(expr)?;
        if with_filter {
            expr = self.filter_expr(expr)?;
        }
        self.nesting -= 1;
        Ok(expr)
    }

    fn primary(&mut self) -> Res<Expr> {
        let line = self.line();
        let kind = match self.tok().clone() {
            Tok::Name(name) => {
                self.advance();
                match &name[..] {
                    "true" | "True" => Kind::Const(Const::Bool(true)),
                    "false" | "False" => Kind::Const(Const::Bool(false)),
                    "none" | "None" => Kind::Const(Const::None),
                    _ => Kind::Name(self.symbol(&name)),
                }
            }
            Tok::Str(mut text) => {
                self.advance();
                while let Tok::Str(more) = self.tok() {
                    text.push_str(more);
                    self.advance();
                }
                Kind::Const(Const::Str(text))
            }
            Tok::Int(value) => {
                self.advance();
                Kind::Const(Const::Int(value))
            }
            Tok::Float(value) => {
                self.advance();
                Kind::Const(Const::Float(value))
            }
            Tok::Op("(") => {
                self.advance();
                let inner = self.tuple(true, &[], true)?;
                self.expect_op(")")?;
                return Ok(inner);
            }
            Tok::Op("[") => {
                self.advance();
                let mut items = Vec::new();
                while !self.is_op("]") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                        if self.is_op("]") {
                            break;
                        }
                    }
                    items.push(self.expression()?);
                }
                self.expect_op("]")?;
                Kind::List(items)
            }
            Tok::Op("{") => {
                self.advance();
                let mut items = Vec::new();
                while !self.is_op("}") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                        if self.is_op("}") {
                            break;
                        }
                    }
                    let key = self.expression()?;
                    self.expect_op(":")?;
                    items.push((key, self.expression()?));
                }
                self.expect_op("}")?;
                Kind::Dict(items)
            }
            _ => return self.unexpected("an expression"),
        };
        self.node(line, kind)
    }

    fn postfix(&mut self, mut expr: Expr) -> Res<Expr> {
        loop {
            let line = self.line();
            if self.skip_op(".") {
                let kind = match self.tok().clone() {
                    Tok::Name(name) => Kind::Attribute(expr, name),
                    Tok::Int(index) => {
                        let index = self.node(line, Kind::Const(Const::Int(index)))?;
                        Kind::Item(expr, index)
                    }
                    _ => return self.unexpected("a name or a number"),
                };
                self.advance();
                expr = self.node(line, kind)?;
            } else if self.skip_op("[") {
                let kind = self.subscript(expr)?;
                expr = self.node(line, kind)?;
            } else if self.is_op("(") {
                let args = self.call_args()?;
                expr = self.node(line, Kind::Call(expr, args))?;
            } else {
                return Ok(expr);
            }
        }
    }

    fn subscript(&mut self, expr: Expr) -> Res<Kind> {
        let line = self.line();
        let mut items = Vec::new();
        let mut slice = None;
        while !self.is_op("]") {
            if !items.is_empty() || slice.is_some() {
                self.expect_op(",")?;
            }
            let start = if self.is_op(":") {
                None
            } else {
                Some(self.expression()?)
            };
            if !self.is_op(":") {
                items.extend(start);
                continue;
            }
            let mut part = || -> Res<Option<Expr>> {
                if !self.skip_op(":") || self.is_op(":") || self.is_op("]") || self.is_op(",") {
                    return Ok(None);
                }
                self.expression().map(Some)
            };
            slice = Some((start, part()?, part()?));
        }
        self.expect_op("]")?;
        match (slice, items.len()) {
            (Some((start, stop, step)), 0) => Ok(Kind::Slice(expr, start, stop, step)),
            (Some(_), _) => self.fail("a slice among other subscripts is not implemented"),
            (None, 1) => {
                let item = items.swap_remove(0);
                Ok(Kind::Item(expr, item))
            }
            (None, _) => {
                let tuple = self.node(line, Kind::Tuple(items))?;
                Ok(Kind::Item(expr, tuple))
            }
        }
    }

    fn call_args(&mut self) -> Res<CallArgs> {
        self.expect_op("(")?;
        let mut args = CallArgs::default();
        let mut first = true;
        let invalid = "invalid syntax for function call expression";
        while !self.is_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            first = false;
            if self.skip_op("*") {
                if args.star.is_some() || args.star_star.is_some() {
                    return self.fail(invalid);
                }
                args.star = Some(self.expression()?);
            } else if self.skip_op("**") {
                if args.star_star.is_some() {
                    return self.fail(invalid);
                }
                args.star_star = Some(self.expression()?);
            } else if matches!((self.tok(), self.look()), (Tok::Name(_), Tok::Op("="))) {
                let name = self.expect_name()?;
                self.advance();
                if args.star_star.is_some() || args.keywords.iter().any(|(other, _)| *other == name) {
                    return self.fail(invalid);
                }
                args.keywords.push((name, self.expression()?));
            } else {
                if args.star.is_some() || args.star_star.is_some() || !args.keywords.is_empty() {
                    return self.fail(invalid);
                }
                args.positional.push(self.expression()?);
            }
        }
        self.expect_op(")")?;
        Ok(args)
    }

    fn filter_expr(&mut self, mut expr: Expr) -> Res<Expr> {
        loop {
            let line = self.line();
            if self.is_op("|") {
                self.advance();
                let filter = self.filter()?;
                expr = self.node(line, Kind::Filter(expr, filter))?;
            } else if self.skip_name("is") {
                let is_not = self.skip_name("not");
                let name = self.dotted()?;
                if !self.soft && !is_test(&name) {
                    self.unknown.push(Failure {
                        message: format!("No test named {name:?}."),
                        line,
                    });
                }
                let args = self.test_args()?;
                expr = self.node(line, Kind::Test(expr, name, args))?;
                if is_not {
                    expr = self.node(line, Kind::Not(expr))?;
                }
            } else if self.is_op("(") {
                let args = self.call_args()?;
                expr = self.node(line, Kind::Call(expr, args))?;
            } else {
                return Ok(expr);
            }
        }
    }

    fn test_args(&mut self) -> Res<CallArgs> {
        let takes_one = match self.tok() {
            Tok::Op("(") => return self.call_args(),
            Tok::Name(name) => !["else", "or", "and"].contains(&&name[..]),
            Tok::Str(_) | Tok::Int(_) | Tok::Float(_) | Tok::Op("[" | "{") => true,
            _ => false,
        };
        let mut args = CallArgs::default();
        if takes_one {
            if self.is_name("is") {
                return self.fail("You cannot chain multiple tests with is");
            }
            self.nest()?;
            let arg = self.primary()?;
            args.positional.push(self.postfix(arg)?);
            self.nesting -= 1;
        }
        Ok(args)
    }

    fn dotted(&mut self) -> Res<String> {
        let mut name = self.expect_name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name)
    }

    fn filter(&mut self) -> Res<Filter> {
        let line = self.line();
        let name = self.dotted()?;
        if !self.soft && !is_filter(&name) {
            self.unknown.push(Failure {
                message: format!("No filter named {name:?}."),
                line,
            });
        }
        let args = if self.is_op("(") {
            self.call_args()?
        } else {
            CallArgs::default()
        };
        Ok(Filter { name, args, line })
    }

    /// Filters of a block: the first without a bar where `begins`.
    fn filters(&mut self, begins: bool) -> Res<Vec<Filter>> {
        let mut filters = Vec::new();
        if begins {
            filters.push(self.filter()?);
        }
        while self.skip_op("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }
}

/// The depth of the deepest expression right below.
fn deepest(kind: &Kind) -> u16 {
    let all = |exprs: &[Expr]| exprs.iter().map(|e| e.depth).max().unwrap_or(0);
    let some = |expr: &Option<Expr>| expr.as_ref().map_or(0, |e| e.depth);
    let call = |args: &CallArgs| {
        let keywords = args.keywords.iter().map(|(_, e)| e.depth).max().unwrap_or(0);
        all(&args.positional)
            .max(keywords)
            .max(some(&args.star))
            .max(some(&args.star_star))
    };
    match kind {
        Kind::Const(_) | Kind::Name(_) => 0,
        Kind::List(items) | Kind::Tuple(items) | Kind::Concat(items) => all(items),
        Kind::Dict(items) => items.iter().map(|(k, v)| k.depth.max(v.depth)).max().unwrap_or(0),
        Kind::Attribute(e, _) | Kind::Not(e) | Kind::Neg(e) | Kind::Pos(e) => e.depth,
        Kind::Item(a, b) | Kind::Binary(_, a, b) | Kind::And(a, b) | Kind::Or(a, b) => a.depth.max(b.depth),
        Kind::Slice(e, a, b, c) => e.depth.max(some(a)).max(some(b)).max(some(c)),
        Kind::Call(e, args) | Kind::Test(e, _, args) => e.depth.max(call(args)),
        Kind::Filter(e, filter) => e.depth.max(call(&filter.args)),
        Kind::Compare(e, others) => others
            .iter()
            .map(|(_, o)| o.depth)
            .max()
            .unwrap_or(0)
            .max(e.depth),
        Kind::If(a, b, c) => a.depth.max(b.depth).max(some(c)),
    }
}

import pg from 'pg';

/** Placeholders of a create statement, with the kind of SQL token that each becomes. */
const placeholders = { role: 'identifier', group: 'identifier', password: 'literal', expires: 'literal' } as const;
export type Placeholder = keyof typeof placeholders;

export type StatementValues = Record<Placeholder, string>;

/** A create statement, cut at its placeholders when it was loaded: rendering joins pieces and never searches text. */
export interface StatementTemplate {
  /** Text pieces; a placeholder stands between each two. */
  texts: readonly string[];
  names: readonly Placeholder[];
}

/**
 * `SET FALSE`: a login acts as itself, so that what it makes is its own and goes with it. It still has what the group may do.
 */
export function defaultStatements(connectionLimit: number): string[] {
  return [
    `CREATE ROLE {{role}} LOGIN PASSWORD {{password}} VALID UNTIL {{expires}} CONNECTION LIMIT ${connectionLimit}`,
    'GRANT {{group}} TO {{role}} WITH INHERIT TRUE, SET FALSE',
  ];
}

export function render(template: StatementTemplate, values: StatementValues): string {
  let sql = template.texts[0]!;
  for (const [index, name] of template.names.entries()) sql += token(name, values[name]) + template.texts[index + 1]!;
  return sql;
}

/** `GRANT role TO role`, as opposed to privileges `ON` something. */
export function grantsMembership(template: StatementTemplate): boolean {
  return /^GRANT\s/i.test(template.texts[0]!) && !template.texts.some((text) => /\sON\s/i.test(text));
}

function token(name: Placeholder, value: string): string {
  if (value.includes('\0')) throw new Error(`{{${name}}} holds a NUL`);
  return placeholders[name] === 'identifier' ? pg.escapeIdentifier(value) : pg.escapeLiteral(value);
}

const maxStatements = 16;
const maxStatementLength = 4000;
const firstStatement = /^CREATE\s+(?:ROLE|USER)\s+$/i;
const otherStatement = /^(?:GRANT|REVOKE|COMMENT\s+ON|ALTER\s+(?:ROLE|USER)|SELECT)\s/i;

/** Parses a tier's statements; `issue` is told, with the index, what is wrong with each. */
export function parseStatements(
  statements: readonly unknown[],
  issue: (index: number | undefined, message: string) => void,
): StatementTemplate[] {
  if (statements.length === 0 || statements.length > maxStatements) {
    issue(undefined, `must have 1 to ${maxStatements} statements`);
    return [];
  }
  const templates: StatementTemplate[] = [];
  for (const [index, statement] of statements.entries()) {
    if (typeof statement !== 'string' || statement.trim() === '' || statement.length > maxStatementLength) {
      issue(index, `must be an SQL statement of at most ${maxStatementLength} characters`);
      continue;
    }
    const template = parse(statement.trim(), (message) => issue(index, message));
    if (template === undefined) continue;
    templates.push(template);
    const start = template.texts[0]!;
    if (index === 0 && !(firstStatement.test(start) && template.names[0] === 'role')) {
      issue(index, 'the first statement must be CREATE ROLE {{role}} …: revoking looks for that role');
    }
    if (index > 0 && !otherStatement.test(start)) {
      issue(
        index,
        'must be a GRANT, REVOKE, COMMENT ON, ALTER ROLE or SELECT: the statements run in one transaction of the broker',
      );
    }
  }
  const used = new Set(templates.flatMap((template) => template.names));
  for (const name of ['role', 'password', 'expires'] as const) {
    if (!used.has(name)) issue(undefined, `no statement uses {{${name}}}; every login needs it`);
  }
  return templates;
}

/**
 * Walks the statement once, so that a placeholder inside quotes or a comment, where its own quotes would break out, is
 * refused, and so is a second statement behind a semicolon.
 */
function parse(sql: string, issue: (message: string) => void): StatementTemplate | undefined {
  const texts: string[] = [];
  const names: Placeholder[] = [];
  let text = '';
  let rest = sql;
  const fail = (message: string) => {
    issue(message);
    return undefined;
  };
  while (rest !== '') {
    const name = /^\{\{([^{}]*)\}\}/.exec(rest);
    if (name !== null) {
      if (!Object.hasOwn(placeholders, name[1]!)) {
        return fail(`{{${name[1]!}}} is not a placeholder; there are {{role}}, {{group}}, {{password}}, {{expires}}`);
      }
      texts.push(text);
      names.push(name[1] as Placeholder);
      text = '';
      rest = rest.slice(name[0].length);
      continue;
    }
    const quoted = /^(?:'(?:[^']|'')*'|"(?:[^"]|"")*")/.exec(rest)?.[0];
    if (quoted !== undefined) {
      if (quoted.includes('{{')) return fail('a placeholder must not stand in quotes: it brings its own');
      if (quoted.includes('\\')) return fail('a quoted string must not hold a backslash');
      text += quoted;
      rest = rest.slice(quoted.length);
      continue;
    }
    if (/^['"]/.test(rest)) return fail('a quote is not closed');
    if (/^(?:--|\/\*|\$)/.test(rest)) return fail('comments and dollar quotes are not allowed');
    if (/^[{}\0]/.test(rest)) return fail('{ and } are for placeholders only');
    if (rest[0] === ';') return /^;\s*$/.test(rest) ? finish() : fail('must be a single statement');
    text += rest[0]!;
    rest = rest.slice(1);
  }
  return finish();

  function finish(): StatementTemplate {
    return { texts: [...texts, text], names };
  }
}

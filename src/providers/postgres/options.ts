import type { OptionIssue } from '../options.ts';
import { defaultStatements, parseStatements } from './statements.ts';
import type { StatementTemplate } from './statements.ts';

/** Options of a tier with `provider: postgres`. */
export interface PostgresTierOptions {
  /** Name of a target in `leasehold.yaml`. */
  target: string;
  /** NOLOGIN role at the target that holds the tier's privileges. */
  groupRole: string;
  statements: readonly StatementTemplate[];
}

const known = ['target', 'groupRole', 'connectionLimit', 'statements'];
const targetName = /^[a-z][a-z0-9-]{0,62}$/;
const defaultConnectionLimit = 10;

export function isTargetName(name: string): boolean {
  return targetName.test(name);
}

/** What is wrong with a tier's options; empty when they can be used. Called when a policy directory is loaded. */
export function validateTierOptions(options: Readonly<Record<string, unknown>>, path: string): OptionIssue[] {
  return read(options, path).issues;
}

/** The options, parsed. Throws when `validateTierOptions` would have found something. */
export function parseTierOptions(options: Readonly<Record<string, unknown>>): PostgresTierOptions {
  const { issues, parsed } = read(options, 'options');
  if (issues.length > 0) throw new Error(issues.map((issue) => `${issue.path}: ${issue.message}`).join('; '));
  return parsed;
}

function read(
  options: Readonly<Record<string, unknown>>,
  path: string,
): { issues: OptionIssue[]; parsed: PostgresTierOptions } {
  const issues: OptionIssue[] = [];
  const issue = (name: string, message: string) => issues.push({ path: `${path}.${name}`, message });
  for (const name of Object.keys(options)) {
    if (!known.includes(name)) issue(name, `unknown option; a tier with provider postgres takes ${known.join(', ')}`);
  }
  const { target, groupRole, connectionLimit = defaultConnectionLimit, statements } = options;
  if (typeof target !== 'string' || !isTargetName(target)) {
    issue('target', 'must be the name of a target: a lower-case letter, then at most 62 of a-z, 0-9 and -');
  }
  if (!isRoleName(groupRole)) {
    issue(
      'groupRole',
      'must be the name of a role at the target, at most 63 bytes, not one of PostgreSQL’s own (pg_…)',
    );
  }
  if (!Number.isInteger(connectionLimit) || (connectionLimit as number) < 1 || (connectionLimit as number) > 1000) {
    issue('connectionLimit', 'must be a whole number from 1 to 1000');
  }
  if (statements !== undefined && !Array.isArray(statements)) issue('statements', 'must be a list of SQL statements');
  if (statements !== undefined && options['connectionLimit'] !== undefined) {
    issue(
      'connectionLimit',
      'has no effect beside `statements`; write CONNECTION LIMIT into the CREATE ROLE statement',
    );
  }
  const source = Array.isArray(statements) ? statements : defaultStatements(connectionLimit as number);
  const templates = parseStatements(source, (index, message) =>
    issue(index === undefined ? 'statements' : `statements[${index}]`, message),
  );
  return {
    issues,
    parsed: { target: target as string, groupRole: groupRole as string, statements: templates },
  };
}

function isRoleName(value: unknown): value is string {
  return (
    typeof value === 'string' &&
    value !== '' &&
    !value.includes('\0') &&
    Buffer.byteLength(value, 'utf8') <= 63 &&
    !value.startsWith('pg_') &&
    !['public', 'none'].includes(value)
  );
}

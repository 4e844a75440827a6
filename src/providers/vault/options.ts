import { parseDuration } from '../../config/duration.ts';
import type { Millis } from '../../domain/time.ts';
import type { OptionIssue } from '../options.ts';
import { isVaultPath } from './client.ts';
import { isServerName } from './handle.ts';
import { argumentsIn, parseTemplate, type Template } from './parameters.ts';

/** Options of a tier with `provider: vault`. */
export interface VaultTierOptions {
  /** Name of a server in `leasehold.yaml`. */
  server: string;
  /** Mount and path below it; what is asked for, and how the leases that it gives are named. */
  path: string;
  method: 'read' | 'write';
  /** The only parameters that are ever sent. */
  parameters: Readonly<Record<string, Template>>;
  /** Token role that makes the task's token; the server's own when unset. */
  tokenRole: string | undefined;
  /** The answer's username and password are a login at this database. */
  login: { host: string; port: number; database: string; sslmode: string } | undefined;
  /** What Vault keeps no lease of: when it dies by itself. */
  leaseless: { endsWithin: Millis | undefined; expiryField: string | undefined } | undefined;
  /** A read of this path takes away all that was made with tokens of the same display name. */
  sweep: string | undefined;
  /** The agent gets a token with which it fetches the secret from Vault itself, once, within this time. */
  wrap: Millis | undefined;
  /** Nothing but Leasehold reads from this path: a lease under it that is none of ours is a stray. */
  exclusive: boolean;
}

const known = [
  'server',
  'mount',
  'path',
  'method',
  'parameters',
  'tokenRole',
  'login',
  'leaseless',
  'endsWithin',
  'expiryField',
  'responseWrapping',
  'exclusive',
  'sweep',
];
const name = /^[A-Za-z0-9_.-]{1,64}$/;
const sslmodes = ['verify-full', 'verify-ca', 'require', 'disable'];
/** Mounts with which a token could do more than fetch one credential. */
const forbiddenMounts = /^(sys|auth|identity|cubbyhole)(\/|$)/;

/** What is wrong with a tier's options; empty when they can be used. Called when a policy directory is loaded. */
export function validateVaultTierOptions(options: Readonly<Record<string, unknown>>, path: string): OptionIssue[] {
  return read(options, path).issues;
}

/** The options, parsed. Throws when `validateVaultTierOptions` would have found something. */
export function parseVaultTierOptions(options: Readonly<Record<string, unknown>>): VaultTierOptions {
  const { issues, parsed } = read(options, 'options');
  if (issues.length > 0) throw new Error(issues.map((issue) => `${issue.path}: ${issue.message}`).join('; '));
  return parsed;
}

/** What the options say against the rest of the tier. */
export function vaultTierFault(
  options: Readonly<Record<string, unknown>>,
  revocation: string,
  declared: readonly string[],
): { path: string[]; message: string; hint: string } | undefined {
  if (options['leaseless'] === true && revocation === 'immediate') {
    const message = 'is immediate, but Vault keeps no lease of this secret and cannot take it back';
    return { path: ['revocation'], message, hint: 'say bounded or none' };
  }
  for (const [parameter, text] of Object.entries((options['parameters'] ?? {}) as object)) {
    const missing = argumentsIn(text).find((name) => !declared.includes(name));
    if (missing === undefined) continue;
    return {
      path: ['vault', 'parameters', parameter],
      message: `uses args.${missing}, and the tier declares no such argument`,
      hint: declared.length === 0 ? 'declare it under arguments' : `it declares ${declared.join(', ')}`,
    };
  }
  return undefined;
}

function read(
  options: Readonly<Record<string, unknown>>,
  at: string,
): { issues: OptionIssue[]; parsed: VaultTierOptions } {
  const issues: OptionIssue[] = [];
  const issue = (option: string, message: string) => issues.push({ path: `${at}.${option}`, message });
  for (const option of Object.keys(options)) {
    if (!known.includes(option)) issue(option, `unknown option; a tier with provider vault takes ${known.join(', ')}`);
  }
  const { server, mount, path, method = 'read', leaseless = false, exclusive = false } = options;
  if (typeof server !== 'string' || !isServerName(server)) issue('server', 'must be the name of a Vault server');
  if (typeof mount !== 'string' || !isVaultPath(mount) || forbiddenMounts.test(mount)) {
    issue('mount', 'must be the mount of a secrets engine, such as database; not sys, auth, identity or cubbyhole');
  }
  if (typeof path !== 'string' || !isVaultPath(path) || path.endsWith('/')) {
    issue('path', 'must be a path below the mount, such as creds/reporting, without ".." and without a query');
  }
  const { sweep } = options;
  if (
    sweep !== undefined &&
    (typeof sweep !== 'string' || !isVaultPath(sweep) || sweep.endsWith('/') || sweep === path)
  ) {
    issue('sweep', 'must be another path below the mount, such as creds/leasehold-sweep (docs/vault.md)');
  }
  if (sweep !== undefined && leaseless === true)
    issue('sweep', 'is for what Vault makes, and a leaseless secret is kept');
  if (method !== 'read' && method !== 'write') issue('method', 'must be read or write');
  if (typeof leaseless !== 'boolean') issue('leaseless', 'must be true or false');
  if (typeof exclusive !== 'boolean') issue('exclusive', 'must be true or false');
  if (options['tokenRole'] !== undefined && !isName(options['tokenRole'])) {
    issue('tokenRole', 'must be the name of a token role');
  }
  const duration = (option: string, least: Millis, most: Millis, range: string): Millis | undefined => {
    const value = options[option];
    if (value === undefined) return undefined;
    const millis = typeof value === 'string' ? parseDuration(value) : undefined;
    if (millis === undefined || millis < least || millis > most) issue(option, `must be a duration from ${range}`);
    return millis;
  };
  const wrap = duration('responseWrapping', 1_000, 3_600_000, '1s to 1h');
  const endsWithin = duration('endsWithin', 1_000, 3_650 * 86_400_000, '1s to 3650d');
  const { expiryField } = options;
  if (expiryField !== undefined && !isName(expiryField))
    issue('expiryField', 'must be the name of a field of the answer');
  if (leaseless === true) {
    if (endsWithin === undefined && (expiryField === undefined || wrap !== undefined)) {
      issue(
        'endsWithin',
        'is missing: when such a secret dies by itself (rotation counts) has to be known, since Vault cannot take it back',
      );
    }
  } else {
    for (const option of ['endsWithin', 'expiryField', 'responseWrapping']) {
      if (options[option] !== undefined)
        issue(option, 'has a meaning for leaseless secrets only: say leaseless: true, or remove it');
    }
  }
  return {
    issues,
    parsed: {
      server: server as string,
      path: `${String(mount).replace(/\/$/, '')}/${String(path)}`,
      method: method as VaultTierOptions['method'],
      parameters: readParameters(options['parameters'], issue),
      tokenRole: options['tokenRole'] as string | undefined,
      login: readLogin(options['login'], leaseless === true, issue),
      leaseless: leaseless === true ? { endsWithin, expiryField: expiryField as string | undefined } : undefined,
      sweep: sweep === undefined ? undefined : `${String(mount).replace(/\/$/, '')}/${String(sweep)}`,
      wrap,
      exclusive: exclusive as boolean,
    },
  };
}

type Issue = (option: string, message: string) => void;

function readParameters(value: unknown, issue: Issue): Record<string, Template> {
  if (value === undefined) return {};
  if (typeof value !== 'object' || value === null || Array.isArray(value) || Object.keys(value).length > 32) {
    issue('parameters', 'must be a map of at most 32 parameters');
    return {};
  }
  const parameters: Record<string, Template> = {};
  for (const [parameter, text] of Object.entries(value as Record<string, unknown>)) {
    if (!isName(parameter)) issue('parameters', `${JSON.stringify(parameter)} is not the name of a parameter`);
    const template = parseTemplate(text, (message) => issue(`parameters.${parameter}`, message));
    if (template !== undefined) parameters[parameter] = template;
  }
  return parameters;
}

function readLogin(value: unknown, leaseless: boolean, issue: Issue): VaultTierOptions['login'] {
  if (value === undefined) return undefined;
  if (leaseless) issue('login', 'is for a database login, which Vault keeps a lease of');
  const { host, port = 5432, database, sslmode = 'verify-full', ...more } = (value ?? {}) as Record<string, unknown>;
  for (const field of Object.keys(more)) issue(`login.${field}`, 'unknown; there are host, port, database, sslmode');
  if (typeof host !== 'string' || host === '' || host.length > 253)
    issue('login.host', 'must be a host name or address');
  if (!Number.isInteger(port) || (port as number) < 1 || (port as number) > 65_535)
    issue('login.port', 'must be a port');
  if (typeof database !== 'string' || database === '' || database.length > 63) {
    issue('login.database', 'must be the name of a database');
  }
  if (!sslmodes.includes(sslmode as string)) issue('login.sslmode', `must be one of ${sslmodes.join(', ')}`);
  return { host: host as string, port: port as number, database: database as string, sslmode: sslmode as string };
}

function isName(value: unknown): value is string {
  return typeof value === 'string' && name.test(value);
}

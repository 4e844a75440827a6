import { BrokerError } from '../../domain/errors.ts';
import type { Instant, Millis } from '../../domain/time.ts';
import { isVaultPath } from './client.ts';

/**
 * What a handle says about one thing at Vault. A handle is `vault:<server>/` and such parts with a space between; more than
 * one while a credential is made anew, when the earlier one may live still.
 *
 * - `leased`: a lease that Vault has named, and the task token that it was made with.
 * - `asked`: a read was about to be sent with this token; Vault's answer would have named the lease. `exclusive`: nothing but
 *   this broker reads from the path. What Vault made and keeps no lease of is ended by a `sweep`, or ends by itself after `life`.
 * - `leaseless`: Vault keeps nothing; the secret dies by itself.
 * - `wrapped`: as leaseless, and whoever has the wrapping token can fetch it once.
 * - `token`: a task token, with all that was made with it.
 */
export type HandlePart =
  | { kind: 'leased'; accessor: string; vaultLease: string }
  | {
      kind: 'asked';
      accessor: string;
      path: string;
      at: Instant;
      exclusive: boolean;
      life?: Millis;
      sweep?: Sweep;
    }
  | { kind: 'leaseless'; end: Instant }
  | { kind: 'wrapped'; accessor: string; end: Instant }
  | { kind: 'token'; accessor: string };

/** What takes away all that was made with one token, whether Vault knows of it or not (sweep.ts). */
export interface Sweep {
  /** The token's own name, which the names of what was made with it begin with. */
  name: string;
  role: string;
  path: string;
}

export interface VaultHandle {
  server: string;
  parts: HandlePart[];
}

const prefix = 'vault:';
const serverName = /^[a-z][a-z0-9-]{0,62}$/;
const sweepName = /^[a-z0-9]{12}$/;
const roleName = /^[A-Za-z0-9_.-]{1,64}$/;
const accessorPattern = /^[A-Za-z0-9_.-]{8,128}$/;

export function isServerName(name: string): boolean {
  return serverName.test(name);
}

/** As handles begin: another kind's target may have the same name. */
export function targetName(server: string): string {
  return `${prefix}${server}`;
}

export function isAccessor(value: unknown): value is string {
  return typeof value === 'string' && accessorPattern.test(value);
}

export function formatHandle({ server, parts }: VaultHandle): string {
  return `${targetName(server)}/${parts.map(formatPart).join(' ')}`;
}

export function formatPart(part: HandlePart): string {
  switch (part.kind) {
    case 'leased':
      return `${part.accessor}=${part.vaultLease}`;
    case 'asked':
      return `${part.accessor}${part.exclusive ? '!' : '?'}${part.at}${formatRest(part)}:${part.path}`;
    case 'leaseless':
      return `-${part.end}`;
    case 'wrapped':
      return `${part.accessor}~${part.end}`;
    case 'token':
      return part.accessor;
  }
}

function formatRest({ life, sweep }: Extract<HandlePart, { kind: 'asked' }>): string {
  const swept = sweep === undefined ? '' : `~s${sweep.name}~${sweep.role}~${sweep.path}~`;
  return `${life === undefined ? '' : `~e${life}`}${swept}`;
}

/** Handles come from our own database, but they name what is revoked: nothing passes that was not made here. */
export function parseHandle(handle: string): VaultHandle {
  const slash = handle.indexOf('/');
  const server = handle.slice(prefix.length, slash);
  if (!handle.startsWith(prefix) || slash < 0 || !isServerName(server)) throw unusable();
  const rest = handle.slice(slash + 1);
  return { server, parts: rest === '' ? [] : rest.split(' ').map(parsePart) };
}

function parsePart(text: string): HandlePart {
  if (/^-\d{1,16}$/.test(text)) return { kind: 'leaseless', end: Number(text.slice(1)) };
  const [, accessor = '', mark, rest = ''] = /^([^=?!~]+)(?:([=?!~])(.*))?$/.exec(text) ?? [];
  if (!isAccessor(accessor)) throw unusable();
  if (mark === undefined) return { kind: 'token', accessor };
  if (mark === '=' && isVaultPath(rest)) return { kind: 'leased', accessor, vaultLease: rest };
  if (mark === '~' && /^\d{1,16}$/.test(rest)) return { kind: 'wrapped', accessor, end: Number(rest) };
  if (mark === '?' || mark === '!') return parseAsked(accessor, mark === '!', rest);
  throw unusable();
}

function parseAsked(accessor: string, exclusive: boolean, rest: string): HandlePart {
  const [, at, life, name, role, sweepPath, path = ''] =
    /^(\d{1,16})(?:~e(\d{1,16}))?(?:~s([^~]+)~([^~]+)~([^~]+)~)?:(.+)$/.exec(rest) ?? [];
  if (at === undefined || !isVaultPath(path)) throw unusable();
  const swept = name !== undefined && role !== undefined && sweepPath !== undefined;
  if (swept && !(sweepName.test(name) && roleName.test(role) && isVaultPath(sweepPath))) throw unusable();
  return {
    kind: 'asked',
    accessor,
    path,
    at: Number(at),
    exclusive,
    ...(life === undefined ? {} : { life: Number(life) }),
    ...(swept ? { sweep: { name, role, path: sweepPath } } : {}),
  };
}

/** The path that was read, where the part says it. Vault's name of a lease is that path and one more segment. */
export function pathOf(part: HandlePart): string | undefined {
  if (part.kind === 'asked') return part.path;
  return part.kind === 'leased' ? part.vaultLease.slice(0, part.vaultLease.lastIndexOf('/')) : undefined;
}

function unusable(): BrokerError {
  return new BrokerError('FIELD_INVALID', 'not the handle of something at a Vault server');
}

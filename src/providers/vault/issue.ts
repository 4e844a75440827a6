import { BrokerError } from '../../domain/errors.ts';
import type { ToolTier } from '../../domain/policy.ts';
import { IssueFailure, type Grant, type Made, type TargetProvider } from '../../domain/provider.ts';
import type { Clock, Instant, Millis } from '../../domain/time.ts';
import { lookUpToken } from './accessors.ts';
import { asFailure, VaultFailure } from './failure.ts';
import { formatHandle, parseHandle, type HandlePart } from './handle.ts';
import { endLease, renewLease } from './leases.ts';
import { endOf, materialOf, secretOf, type Secret } from './material.ts';
import type { VaultTierOptions } from './options.ts';
import { fillParameters } from './parameters.ts';
import type { Open } from './server.ts';
import type { Lives } from './lives.ts';
import type { TaskTokens } from './task-tokens.ts';

export interface IssueOptions {
  tokens: TaskTokens;
  lives: Lives;
  clock: Clock;
  optionsOf(tier: ToolTier): VaultTierOptions;
  serverOf(name: string): Open;
}

type Asked = Extract<HandlePart, { kind: 'asked' }>;

/** Of a secret that says nothing; it is not handed out. */
const unknownEnd: Instant = 9e15;

/** From a decided grant to a secret (design §6). */
export function createIssue({
  tokens,
  lives,
  clock,
  optionsOf,
  serverOf,
}: IssueOptions): Required<Pick<TargetProvider, 'prepare' | 'issue'>> {
  return { prepare, issue };

  async function prepare(grant: Grant, signal: AbortSignal): Promise<string> {
    const { lease, task, tier } = grant;
    const options = optionsOf(tier);
    const server = serverOf(options.server);
    server.breaker.admit();
    try {
      const role = options.tokenRole ?? server.config.tokenRole;
      const { accessor, name } = await tokens.forLease(server, role, task, lease, signal);
      // An active lease is made anew: what it has is not forgotten before it is gone.
      const earlier = lease.state === 'active' ? parseHandle(lease.handle).parts : [];
      const life = lives.of(server.name, options.path);
      const asked: Asked = {
        kind: 'asked',
        accessor,
        path: options.path,
        at: clock.now(),
        exclusive: options.exclusive,
        ...(life === undefined ? {} : { life }),
        ...(options.sweep === undefined ? {} : { sweep: { name, role, path: options.sweep } }),
      };
      return formatHandle({ server: server.name, parts: [...earlier, asked] });
    } catch (error) {
      server.breaker.failed(error);
      throw issueError(error, server, `auth/token/create/${options.tokenRole ?? server.config.tokenRole}`);
    }
  }

  async function issue(grant: Grant, signal: AbortSignal): Promise<Made> {
    const options = optionsOf(grant.tier);
    const server = serverOf(options.server);
    const { parts } = parseHandle(grant.lease.handle);
    const asked = parts.find((part): part is Asked => part.kind === 'asked');
    const token = asked === undefined ? undefined : tokens.tokenOf(asked.accessor);
    const found = (left: readonly HandlePart[]) => formatHandle({ server: server.name, parts: [...left] });
    const earlier = parts.filter((part) => part.kind === 'leased');
    if (asked === undefined || token === undefined) {
      const message = "the task's token was given up meanwhile: retry with the same request_id";
      throw new IssueFailure(new BrokerError('PROVIDER_UNAVAILABLE', message, { retryAfterMs: 100 }), found(earlier));
    }
    try {
      // The secret that was lost is ended before there is another: never two.
      for (const { vaultLease } of earlier) await endLease(server, vaultLease, signal);
    } catch (error) {
      throw new IssueFailure(issueError(error, server, options.path), found(earlier));
    }
    const startedAt = clock.now();
    let secret: Secret;
    try {
      secret = await read(server, options, grant, token, asked, signal);
    } catch (error) {
      // Only where nobody knows whether there is a credential is there something to look for.
      const left = asFailure(error)?.outcome === 'unknown' ? [asked] : [];
      throw new IssueFailure(issueError(error, server, options.path), found(left));
    }
    const made = madeOf(secret, asked, options, server, startedAt);
    try {
      return await accept(server, options, grant, secret, made, startedAt, signal);
    } catch (error) {
      // What Vault keeps nothing of died in this process.
      const left = made.kind === 'leaseless' ? [] : [made];
      throw new IssueFailure(issueError(error, server, options.path), found(left));
    }
  }

  /** Never repeated: a second read makes a second credential. */
  async function read(
    server: Open,
    options: VaultTierOptions,
    grant: Grant,
    token: string,
    asked: Asked,
    signal: AbortSignal,
  ): Promise<Secret> {
    const parameters = fillParameters(options.parameters, grant, clock.now());
    const reads = options.method === 'read';
    const query = Object.fromEntries(Object.entries(parameters).map(([name, value]) => [name, String(value)]));
    try {
      const { body } = await server.client.call({
        method: reads ? 'GET' : 'POST',
        path: options.path,
        query: reads && Object.keys(query).length > 0 ? query : undefined,
        body: reads ? undefined : parameters,
        token,
        wrapSeconds: options.wrap === undefined ? undefined : Math.ceil(options.wrap / 1_000),
        lane: 'issue',
        signal,
        timeout: server.config.issueTimeout,
      });
      server.breaker.succeeded();
      const secret = secretOf(body);
      if (secret.vaultLease !== undefined) lives.seen(server.name, options.path, secret.granted);
      return secret;
    } catch (error) {
      server.breaker.failed(error);
      const failure = asFailure(error);
      // Nobody knows whether there is a credential now. The token that would have it is used for no other.
      if (failure?.outcome === 'unknown') await tokens.retire(server, asked.accessor).catch(() => undefined);
      if (failure?.status === 403) await explainRefusal(server, asked.accessor, signal);
      throw error;
    }
  }

  /** A 403 may be about the token or about the path. A token that is gone is not used again, here or by the next attempt. */
  async function explainRefusal(server: Open, accessor: string, signal: AbortSignal): Promise<void> {
    let alive = true;
    try {
      alive = (await lookUpToken(server, accessor, signal)) !== undefined;
    } catch {
      return;
    }
    if (alive) return;
    tokens.drop(accessor);
    throw new BrokerError(
      'PROVIDER_UNAVAILABLE',
      `the task's token at Vault server ${server.name} is gone: retry with the same request_id, and another is made`,
      { retryAfterMs: 100 },
    );
  }

  async function accept(
    server: Open,
    options: VaultTierOptions,
    { lease, tier }: Grant,
    secret: Secret,
    part: HandlePart,
    startedAt: Instant,
    signal: AbortSignal,
  ): Promise<Made> {
    const handle = formatHandle({ server: server.name, parts: [part] });
    if (part.kind === 'leased') {
      const asked = lease.expiresAt - startedAt;
      const granted = await grantedLife(server, secret, asked, signal);
      if (Math.min(granted, asked) < Math.min(tier.ttl.min, asked)) throw tooShort(options, granted, tier.ttl.min);
      return { material: materialOf(secret, options), handle, expiresAt: startedAt + granted };
    }
    if (options.leaseless === undefined) {
      throw new BrokerError(
        'PROVIDER_UNAVAILABLE',
        `${options.path} gives a secret without a lease, which Vault cannot take back: the tool's owner has to say leaseless: true and how long such a secret lives`,
      );
    }
    if (part.kind === 'wrapped') {
      const { token, ttl } = secret.wrapped!;
      const { address, namespace = '' } = server.config;
      const material = { kind: 'vault_wrapped', token, address, namespace, unwrapBefore: startedAt + ttl } as const;
      return { material, handle, expiresAt: part.end };
    }
    if (part.kind !== 'leaseless' || options.wrap !== undefined) {
      throw new BrokerError('PROVIDER_UNAVAILABLE', `${options.path} was not wrapped by Vault server ${server.name}`);
    }
    if (part.end === unknownEnd) {
      throw new BrokerError(
        'PROVIDER_UNAVAILABLE',
        `the answer of ${options.path} has no time in its field ${options.leaseless.expiryField ?? ''}: the tool's owner has to correct the tier's expiryField, or to add endsWithin`,
      );
    }
    return { material: materialOf(secret, options), handle, expiresAt: part.end };
  }

  /** What Vault gives against what was asked: it is asked once more where its role's default is shorter, and then believed. */
  async function grantedLife(server: Open, secret: Secret, asked: Millis, signal: AbortSignal): Promise<Millis> {
    if (secret.granted >= asked || !secret.renewable) return secret.granted;
    try {
      return await renewLease(server, secret.vaultLease!, asked, signal);
    } catch (error) {
      // Refused: what was given first stands. Otherwise nobody knows which of the two does, and the shorter is safe.
      if (asFailure(error) === undefined) throw error;
      return Math.min(secret.granted, asked);
    }
  }
}

/** Where what was made is found from now on. */
function madeOf(
  secret: Secret,
  asked: Asked,
  { leaseless, wrap }: VaultTierOptions,
  server: Open,
  startedAt: Instant,
): HandlePart {
  const { vaultLease, wrapped } = secret;
  let part: HandlePart = { kind: 'leaseless', end: unknownEnd };
  if (vaultLease !== undefined) part = { kind: 'leased', accessor: asked.accessor, vaultLease };
  else if (wrap !== undefined && wrapped !== undefined && leaseless?.endsWithin !== undefined) {
    part = { kind: 'wrapped', accessor: wrapped.accessor, end: startedAt + leaseless.endsWithin };
  } else if (leaseless !== undefined) {
    part = { kind: 'leaseless', end: endOf(secret, leaseless, startedAt) ?? unknownEnd };
  }
  try {
    // A name that could not be read back could not be revoked either: then the token is what finds it.
    parseHandle(formatHandle({ server: server.name, parts: [part] }));
    return part;
  } catch {
    return { kind: 'token', accessor: asked.accessor };
  }
}

function tooShort({ path }: VaultTierOptions, granted: Millis, least: Millis): BrokerError {
  return new BrokerError(
    'PROVIDER_UNAVAILABLE',
    `Vault grants ${Math.floor(granted / 1_000)} s at ${path}, and the tier allows no less than ${Math.ceil(least / 1_000)} s: an operator has to raise the role's TTL at Vault, or the tool's owner to lower the tier's`,
  );
}

/** For the caller of an issue: what to do next, by the class of the failure. */
function issueError(error: unknown, server: Open, path: string): BrokerError {
  if (error instanceof BrokerError) return error;
  const failure = error instanceof VaultFailure ? error : undefined;
  const retryAfterMs = failure?.retryAfterMs ?? 1_000;
  return new BrokerError('PROVIDER_UNAVAILABLE', adviceOf(failure, server.name, path), { cause: error, retryAfterMs });
}

function adviceOf(failure: VaultFailure | undefined, server: string, path: string): string {
  switch (failure?.status) {
    case 403:
      return `Vault server ${server} does not allow ${path}: an operator has to add it to the policy that docs/vault.md describes`;
    case 404:
      return `Vault server ${server} has nothing at ${path}: the tool's owner has to correct the tier's mount and path`;
    case 400:
      return `Vault server ${server} does not take what the tier sends to ${path}: the tool's owner has to correct the tier's parameters`;
    case 429:
      return `Vault server ${server} has too much to do: retry later with the same request_id`;
    case 503:
      return `Vault server ${server} is sealed or not ready, and nothing was issued; retry with the same request_id`;
    default:
      return failure?.outcome === 'unknown'
        ? `Vault server ${server} did not say whether it made the credential; nobody received one, and it is taken away. Retry with the same request_id`
        : `Vault server ${server} cannot be reached or failed, and nothing was issued; retry with the same request_id`;
  }
}

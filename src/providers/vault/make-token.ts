import { randomBytes } from 'node:crypto';
import { BrokerError } from '../../domain/errors.ts';
import type { Task } from '../../domain/model.ts';
import type { Clock, Instant, Millis } from '../../domain/time.ts';
import { isAccessor } from './handle.ts';
import type { Open } from './server.ts';
import type { Lane } from './transport.ts';

export interface MadeToken {
  token: string;
  /** Its own name: Vault calls it `token-leasehold-<name>`, and a username template can begin with that. */
  name: string;
  accessor: string;
  /** When Vault ends it whatever is done. */
  end: Instant;
  /** How long it lives without being renewed. */
  period: Millis;
}

export interface Auth {
  client_token?: unknown;
  accessor?: unknown;
  lease_duration?: unknown;
  renewable?: unknown;
  orphan?: unknown;
  token_policies?: unknown;
}

/** How long what was made for a task may outlive all brokers. */
const longestPeriod: Millis = 120_000;

/**
 * The token of a task: what it may do is fixed by the role, how long it can live by the task's deadline. A role that gives
 * more than the design promises is refused, because nobody would notice before it matters.
 */
export async function makeToken(
  server: Open,
  role: string,
  task: Task,
  mark: string,
  clock: Clock,
  signal: AbortSignal,
): Promise<MadeToken> {
  const now = clock.now();
  const life = Math.ceil((task.deadline - now) / 1_000);
  if (life < 1) throw new BrokerError('DEADLINE_TOO_CLOSE', 'the task ends within the next second');
  const name = tokenName();
  const auth = await createToken(server, role, name, 'issue', signal, {
    explicit_max_ttl: `${life}s`,
    meta: { leasehold: mark, task_id: task.taskId, tenant: task.tenant, agent: task.agent },
  });
  const fault = faultOf(auth);
  if (fault !== undefined) {
    const { accessor } = auth;
    if (isAccessor(accessor)) {
      const revoke = {
        method: 'POST',
        path: 'auth/token/revoke-accessor',
        body: { accessor },
        lane: 'settle',
      } as const;
      await server.session.call({ ...revoke, signal }).catch(() => undefined);
    }
    throw new BrokerError(
      'PROVIDER_UNAVAILABLE',
      `the token role ${role} at Vault server ${server.name} ${fault}: an operator has to correct it (docs/vault.md)`,
    );
  }
  const period = (auth.lease_duration as number) * 1_000;
  return {
    token: auth.client_token as string,
    name,
    accessor: auth.accessor as string,
    end: now + life * 1_000,
    period: Math.min(period, life * 1_000),
  };
}

export async function createToken(
  server: Open,
  role: string,
  name: string,
  lane: Lane,
  signal: AbortSignal,
  more: { explicit_max_ttl: string; meta: Record<string, string> },
): Promise<Auth> {
  const { body } = await server.session.call({
    method: 'POST',
    path: `auth/token/create/${role}`,
    body: { display_name: `leasehold-${name}`, renewable: true, ...more },
    lane,
    repeatable: true,
    signal,
  });
  return (body['auth'] ?? {}) as Auth;
}

/** Twelve of 32 characters: short enough for the name of a login, and never met twice. */
function tokenName(): string {
  return [...randomBytes(12)].map((byte) => 'abcdefghijkmnpqrstuvwxyz23456789'[byte % 32]).join('');
}

function faultOf(auth: Auth): string | undefined {
  if (typeof auth.client_token !== 'string') return 'gives no token';
  if (!isAccessor(auth.accessor)) return 'gives a token without an accessor (a batch token): set token_type=service';
  if (auth.orphan !== true) return "gives tokens that die with the broker's own: set orphan=true";
  if (auth.renewable !== true) return 'gives tokens that cannot be renewed: set renewable=true';
  if (Array.isArray(auth.token_policies) && auth.token_policies.includes('root')) return 'gives root tokens';
  const { lease_duration: seconds } = auth;
  if (typeof seconds !== 'number' || seconds < 1 || seconds * 1_000 > longestPeriod) {
    return `gives tokens that live for ${String(seconds)} s unless they are renewed: set token_period to 60 s, 120 s at most`;
  }
  return undefined;
}

import { BrokerError } from '../../domain/errors.ts';
import { isId, type InstallationMark } from '../../domain/ids.ts';
import type { TargetInventory, TargetProvider } from '../../domain/provider.ts';
import type { RandomBytes } from '../../domain/time.ts';
import { within } from '../../domain/within.ts';
import type { ToolTier } from '../../domain/policy.ts';
import { issueError, sqlstateOf, withoutSecrets } from './errors.ts';
import { createInventory } from './inventory.ts';
import { issueLogin, replaceSecret } from './issue.ts';
import { isTargetName, parseTierOptions } from './options.ts';
import type { PostgresTierOptions } from './options.ts';
import { revokeLogin, roleExists } from './revoke.ts';
import { createSecretSource } from './scram.ts';
import { defaults, minServerVersion, openPool } from './target.ts';
import type { Connection, PostgresTarget, Target } from './target.ts';

export interface PostgresProviderOptions {
  targets: Readonly<Record<string, PostgresTarget>>;
  random: RandomBytes;
  /** By which the logins of this installation are known. */
  mark: InstallationMark;
}

export interface PostgresProvider extends TargetProvider {
  inventory: TargetInventory;
}

const rolePrefix = 'lh_';
const rolePattern = /^lh_[0-9a-f]{32}$/;
const secretsAhead = 8;
const checkTimeout = 3_000;
const undefinedObject = '42704';

/** Login roles made for one lease each on real PostgreSQL databases. */
export function createPostgresProvider(options: PostgresProviderOptions): PostgresProvider {
  const targets = new Map(Object.entries(options.targets).map(([name, config]) => [name, open(name, config)]));
  const secrets = createSecretSource(options.random, targets.size === 0 ? 0 : secretsAhead);
  // Parsed once per tier object: a policy revision's tiers are frozen values that come back with every call.
  const parsed = new WeakMap<ToolTier, PostgresTierOptions>();

  function optionsOf(tier: ToolTier): PostgresTierOptions {
    let found = parsed.get(tier);
    if (found === undefined) {
      try {
        found = parseTierOptions(tier.options);
      } catch (error) {
        throw new BrokerError('PROVIDER_UNAVAILABLE', "the tier's options for provider postgres cannot be used", {
          cause: error,
        });
      }
      parsed.set(tier, found);
    }
    return found;
  }

  function targetOf(name: string): Target {
    const target = targets.get(name);
    if (target === undefined) {
      throw new BrokerError(
        'PROVIDER_UNAVAILABLE',
        `no PostgreSQL target named ${name} is configured: an operator has to add it to leasehold.yaml (also one that was removed, until its logins are revoked)`,
      );
    }
    return target;
  }

  /** Handles come from our own database, but they name what gets dropped: nothing but a lease's role passes. */
  function parseHandle(handle: string): { target: Target; name: string; role: string } {
    const [name = '', role = '', ...more] = handle.split('/');
    if (!isTargetName(name) || !rolePattern.test(role) || more.length > 0) {
      throw new BrokerError('FIELD_INVALID', 'not the handle of a PostgreSQL login');
    }
    return { target: targetOf(name), name, role };
  }

  async function atTarget<T>(
    handle: string,
    signal: AbortSignal,
    work: (at: ReturnType<typeof parseHandle>) => Promise<T>,
  ) {
    const at = parseHandle(handle);
    try {
      return await work(at);
    } catch (error) {
      if (error instanceof BrokerError) throw error;
      const cause = withoutSecrets(error, [at.target.config.password]);
      const reason = signal.aborted ? 'the call ran out of time' : cause.message;
      throw new BrokerError('PROVIDER_UNAVAILABLE', `${at.role} on target ${at.name}: ${reason}`, { cause });
    }
  }

  return {
    selfContained: false,
    kind: 'postgres',
    reissue: 'replaces',
    issueTimeout: Math.max(
      0,
      ...[...targets.values()].map(({ config }) => config.issueTimeout ?? defaults.issueTimeout),
    ),

    handle(leaseId, tier) {
      if (!isId('lse', leaseId)) throw new BrokerError('FIELD_INVALID', 'lease_id: not a lease identifier');
      const { target } = optionsOf(tier);
      targetOf(target);
      return `${target}/${rolePrefix}${leaseId.slice('lse_'.length)}`;
    },

    async issue({ lease, tier }, signal) {
      const tierOptions = optionsOf(tier);
      const { target, name, role } = parseHandle(lease.handle);
      const timeout = target.config.issueTimeout ?? defaults.issueTimeout;
      // A little before we give up: what passed the target's last check has then been committed, and a revoke sees it.
      const deadline = performance.now() + timeout * 0.9;
      const secret = await secrets.take();
      const values = {
        role,
        group: tierOptions.groupRole,
        password: secret.verifier,
        expires: new Date(lease.expiresAt).toISOString(),
      };
      try {
        const make = (connection: Connection) =>
          lease.state === 'active'
            ? replaceSecret(connection, deadline, values)
            : issueLogin(connection, tierOptions.statements, deadline, values, target.config.grantor);
        await within(timeout, (bounded) => target.issuing.use(bounded, make), signal);
      } catch (error) {
        if (lease.state === 'active' && sqlstateOf(error) === undefinedObject) {
          throw new BrokerError('LEASE_ENDED', `lease ${lease.leaseId} has ended: ask with a new request_id`);
        }
        throw issueError(error, name, tierOptions.groupRole, [
          secret.password,
          secret.verifier,
          target.config.password,
        ]);
      }
      const { host, port, database, sslmode } = target.config;
      return {
        material: { kind: 'postgres_login', host, port, database, username: role, password: secret.password, sslmode },
      };
    },

    async revoke(handle, signal) {
      await atTarget(handle, signal, async ({ target, role }) => {
        const timeout = target.config.revokeTimeout ?? defaults.revokeTimeout;
        await within(timeout, (bounded) => revokeLogin(target.revoking, role, target.config, bounded), signal);
      });
    },

    describe(handle) {
      const [name = '', role = ''] = handle.split('/');
      const config = targets.get(name)?.config;
      if (config === undefined) return { target: name, role };
      return { target: name, host: config.host, port: String(config.port), database: config.database, role };
    },

    async exists(handle, signal) {
      return await atTarget(handle, signal, async ({ target, role }) => {
        const look = (connection: Connection) => roleExists(connection, role);
        return await within(checkTimeout, (bounded) => target.revoking.use(bounded, look), signal);
      });
    },

    inventory: createInventory(targets, options.mark, targetOf),

    async check(signal) {
      return await Promise.all([...targets].map(([name, target]) => checkTarget(name, target, signal)));
    },

    async close() {
      secrets.close();
      await Promise.all([...targets.values()].flatMap(({ issuing, revoking }) => [issuing.close(), revoking.close()]));
    },
  };
}

function open(name: string, config: PostgresTarget): Target {
  if (!isTargetName(name)) {
    throw new Error(`target ${JSON.stringify(name)}: a name is a lower-case letter, then at most 62 of a-z, 0-9 and -`);
  }
  const size = config.poolSize ?? defaults.poolSize;
  const issueTimeout = config.issueTimeout ?? defaults.issueTimeout;
  return {
    config,
    issuing: openPool(config, size, issueTimeout),
    revoking: openPool(config, Math.max(2, Math.ceil(size / 4)), config.revokeTimeout ?? defaults.revokeTimeout),
  };
}

async function checkTarget(target: string, { config, revoking }: Target, signal: AbortSignal) {
  const name = `provider/postgres/${target}`;
  try {
    const look = async ({ query }: Connection) => {
      const { rows } = await query(
        `SELECT current_setting('server_version_num')::int AS version, r.rolcreaterole OR r.rolsuper AS creates,
                pg_is_in_recovery() AS standby
           FROM pg_roles AS r WHERE r.rolname = current_user`,
      );
      return rows[0] as { version: number; creates: boolean; standby: boolean };
    };
    const row = await within(checkTimeout, (bounded) => revoking.use(bounded, look), signal);
    if (row.version < minServerVersion) return { name, ready: false, detail: 'PostgreSQL 16 or later is needed' };
    if (row.standby) return { name, ready: false, detail: 'this is a standby; logins can be made on the primary only' };
    if (!row.creates) return { name, ready: false, detail: "the broker's login there lacks CREATEROLE" };
    return { name, ready: true, detail: `PostgreSQL ${Math.floor(row.version / 10_000)}` };
  } catch (error) {
    return { name, ready: false, detail: withoutSecrets(error, [config.password]).message };
  }
}

import { BrokerError } from '../../domain/errors.ts';
import { isId } from '../../domain/ids.ts';
import type { TaskTokenStore } from '../../domain/task-tokens.ts';
import type { ToolTier } from '../../domain/policy.ts';
import type { TargetProvider } from '../../domain/provider.ts';
import type { Clock } from '../../domain/time.ts';
import { asFailure } from './failure.ts';
import { formatHandle, isServerName, parseHandle, pathOf, type HandlePart } from './handle.ts';
import { checkServer } from './health.ts';
import { createInventory } from './inventory.ts';
import { createIssue } from './issue.ts';
import { createLives } from './lives.ts';
import { lookUpLease } from './leases.ts';
import { parseVaultTierOptions, type VaultTierOptions } from './options.ts';
import { createRevoke } from './revoke.ts';
import { openServer, type Open, type VaultServer } from './server.ts';
import { createTaskTokens } from './task-tokens.ts';

export interface VaultProviderOptions {
  servers: Readonly<Record<string, VaultServer>>;
  store: TaskTokenStore;
  clock: Clock;
  random: () => number;
  /** This installation's mark (domain/ids.ts). */
  mark: string;
  events: VaultEvents;
}

export interface VaultEvents {
  loggedIn(server: string, method: string, lifeMs: number): void;
  loginFailed(server: string, error: unknown): void;
  /** Vault had ended a task's token before anybody asked for it. */
  tokenLost(server: string, tenant: string, taskId: string, leases: number): void;
  tokenFailed(server: string, tenant: string, taskId: string, error: unknown): void;
}

export interface VaultProvider extends TargetProvider {
  /** One round of heartbeats and of the broker's own logins. True: there may be more to do at once. */
  tick(): Promise<boolean>;
}

/** Credentials that Vault or OpenBao makes, and secrets that they keep. */
export async function createVaultProvider(options: VaultProviderOptions): Promise<VaultProvider> {
  const { clock } = options;
  const servers = new Map<string, Open>();
  for (const [name, config] of Object.entries(options.servers)) {
    if (!isServerName(name)) throw new Error(`vault server ${JSON.stringify(name)}: not a usable name`);
    servers.set(
      name,
      await openServer(name, config, clock, {
        loggedIn: options.events.loggedIn,
        failed: options.events.loginFailed,
      }),
    );
  }
  const tokens = createTaskTokens({
    servers,
    store: options.store,
    clock,
    random: options.random,
    mark: options.mark,
    lost: ({ server, tenant, taskId }, leases) => options.events.tokenLost(server, tenant, taskId, leases),
    failed: ({ server, tenant, taskId }, error) => options.events.tokenFailed(server, tenant, taskId, error),
  });
  // Parsed once per tier object: a policy revision's tiers are frozen values that come back with every call.
  const parsed = new WeakMap<ToolTier, VaultTierOptions>();
  const lives = createLives();
  const issue = createIssue({ tokens, lives, clock, optionsOf, serverOf });
  const revoke = createRevoke({ tokens, store: options.store, lives, clock });

  function optionsOf(tier: ToolTier): VaultTierOptions {
    let found = parsed.get(tier);
    if (found === undefined) {
      try {
        found = parseVaultTierOptions(tier.options);
      } catch (cause) {
        throw new BrokerError('PROVIDER_UNAVAILABLE', "the tier's options for provider vault cannot be used", {
          cause,
        });
      }
      parsed.set(tier, found);
    }
    return found;
  }

  function serverOf(name: string): Open {
    const server = servers.get(name);
    if (server !== undefined) return server;
    throw new BrokerError(
      'PROVIDER_UNAVAILABLE',
      `no Vault server named ${name} is configured: an operator has to add it to leasehold.yaml (also one that was removed, until its leases are settled)`,
    );
  }

  async function atServer<T>(handle: string, work: (server: Open, parts: HandlePart[]) => Promise<T>): Promise<T> {
    const { server, parts } = parseHandle(handle);
    try {
      return await work(serverOf(server), parts);
    } catch (error) {
      if (error instanceof BrokerError) throw error;
      const said = asFailure(error)?.message ?? 'failed';
      throw new BrokerError('PROVIDER_UNAVAILABLE', `Vault server ${server}: ${said}`, { cause: error });
    }
  }

  return {
    selfContained: false,
    kind: 'vault',
    reissue: 'anew',
    issueTimeout: Math.max(0, ...[...servers.values()].map(({ config }) => config.issueTimeout)),
    ...issue,

    handle(leaseId, tier) {
      if (!isId('lse', leaseId)) throw new BrokerError('FIELD_INVALID', 'lease_id: not a lease identifier');
      // Vault names what it makes; `prepare` says what can be known before. Until then there is nothing to be found.
      return formatHandle({ server: serverOf(optionsOf(tier).server).name, parts: [] });
    },

    revoke: (handle, signal, lease) => atServer(handle, (server, parts) => revoke(server, parts, signal, lease)),

    describe(handle) {
      const { server: name, parts } = parseHandle(handle);
      const address = servers.get(name)?.config.address;
      const path = parts.map(pathOf).findLast((one) => one !== undefined);
      return {
        server: name,
        ...(address === undefined ? {} : { address }),
        ...(path === undefined ? {} : { path }),
      };
    },

    exists: (handle, signal) =>
      atServer(handle, async (server, parts) => {
        for (const part of parts) {
          if (part.kind === 'leased' && (await lookUpLease(server, part.vaultLease, signal)) !== undefined) return true;
          if ((part.kind === 'leaseless' || part.kind === 'wrapped') && part.end > clock.now()) return true;
        }
        return false;
      }),

    inventory: createInventory(servers, options.mark, serverOf),

    check: (signal) => Promise.all([...servers.values()].map((server) => checkServer(server, signal))),

    async tick() {
      // Not waited for: a server that does not answer must not keep the others' tokens from being renewed.
      for (const { session } of servers.values()) {
        session.tick(AbortSignal.timeout(10_000)).catch(() => undefined);
      }
      return await tokens.tick();
    },

    async close() {
      for (const { client } of servers.values()) client.close();
      await Promise.resolve();
    },
  };
}

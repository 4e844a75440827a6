import type { HeldAtTarget, TargetInventory } from '../../domain/provider.ts';
import { lookUpToken } from './accessors.ts';
import { asFailure } from './failure.ts';
import { formatHandle, isAccessor, parseHandle, targetName } from './handle.ts';
import { lookUpLease } from './leases.ts';
import type { Open } from './server.ts';

const atOnce = 8;

/**
 * For reconciliation: the task tokens that Vault holds, told by their metadata; everything that was made for a task hangs on
 * one. Listing accessors needs `list` and `sudo` on auth/token/accessors, which an operator may leave out.
 */
export function createInventory(
  servers: ReadonlyMap<string, Open>,
  mark: string,
  serverOf: (name: string) => Open,
): TargetInventory {
  const at = (target: string) => serverOf(target.slice(targetName('').length));

  return {
    targets: () => [...servers.keys()].map(targetName),

    async list(target, after, limit, signal) {
      const server = at(target);
      const accessors = (await listAccessors(server, signal)).sort();
      const page = accessors.filter((accessor) => after === undefined || accessor > after).slice(0, limit);
      const seen = await inBatches(page, async (accessor): Promise<HeldAtTarget | undefined> => {
        const token = await lookUpToken(server, accessor, signal);
        const { leasehold, task_id: taskId } = token?.meta ?? {};
        if (token === undefined || leasehold === undefined) return undefined;
        return {
          handle: formatHandle({ server: server.name, parts: [{ kind: 'token', accessor }] }),
          leaseId: undefined,
          taskId,
          madeAt: token.createdAt,
          owner: leasehold === mark ? 'ours' : 'other',
        };
      });
      return {
        held: seen.filter((held) => held !== undefined),
        next: page.length === limit && accessors.at(-1) !== page.at(-1) ? page.at(-1) : undefined,
      };
    },

    async present(target, handles, signal) {
      const server = at(target);
      const present = new Set<string>();
      await inBatches(handles, async (handle) => {
        for (const part of parseHandle(handle).parts) {
          const there =
            // Vault keeps nothing of these: they cannot be missing.
            part.kind === 'leaseless' ||
            part.kind === 'wrapped' ||
            part.kind === 'asked' ||
            (part.kind === 'leased' && (await lookUpLease(server, part.vaultLease, signal)) !== undefined) ||
            (part.kind === 'token' && (await lookUpToken(server, part.accessor, signal)) !== undefined);
          if (there) present.add(handle);
        }
      });
      return present;
    },
  };
}

async function listAccessors(server: Open, signal: AbortSignal): Promise<string[]> {
  try {
    const { body } = await server.session.call({
      method: 'LIST',
      path: 'auth/token/accessors',
      lane: 'settle',
      signal,
    });
    const keys = (body['data'] as { keys?: unknown } | undefined)?.keys;
    return Array.isArray(keys) ? keys.filter(isAccessor) : [];
  } catch (error) {
    if (asFailure(error)?.status === 404) return [];
    throw error;
  }
}

async function inBatches<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (let at = 0; at < items.length; at += atOnce) {
    results.push(...(await Promise.all(items.slice(at, at + atOnce).map(work))));
  }
  return results;
}

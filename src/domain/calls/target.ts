import type { Lease } from '../model.ts';
import type { Tool } from '../policy.ts';
import type { Provider } from '../provider.ts';
import type { CallTarget } from './model.ts';

/**
 * Where the credential of a lease leads, by its handle and the configuration. Without a lease for this very tool there is
 * only what is registered of the tool.
 */
export function targetOf(
  lease: Lease | undefined,
  toolName: string,
  tool: Tool | undefined,
  providers: ReadonlyMap<string, Provider>,
): CallTarget | undefined {
  const resource = tool === undefined ? {} : { resource: tool.resource };
  if (lease === undefined || lease.tool !== toolName) return tool === undefined ? undefined : resource;
  return { provider: lease.provider, ...(described(lease, providers.get(lease.provider)) ?? resource) };
}

/** A handle that its provider cannot read says nothing, and keeps no call from being recorded. */
function described(lease: Lease, provider: Provider | undefined): CallTarget | undefined {
  if (provider === undefined || provider.selfContained) return undefined;
  try {
    return provider.describe?.(lease.handle);
  } catch {
    return undefined;
  }
}

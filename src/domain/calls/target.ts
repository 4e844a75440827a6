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
  const provider = providers.get(lease.provider);
  const known = provider === undefined || provider.selfContained ? undefined : provider.describe?.(lease.handle);
  return { provider: lease.provider, ...(known ?? resource) };
}

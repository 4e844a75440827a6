import { BrokerError } from '../../domain/errors.ts';
import { endToken } from './accessors.ts';
import { asFailure } from './failure.ts';
import { isAccessor, type Sweep } from './handle.ts';
import { createToken } from './make-token.ts';
import type { Open } from './server.ts';

/**
 * Ends at the target all that was made with one token. Vault gives up a read whose caller is gone; if that meets the COMMIT
 * that makes a login, the database has the login, and Vault has an error and no lease. So it is as well when Vault dies in
 * between. Nothing at Vault tells of such a login: only its name does, where the operator's username template has the
 * token's name in it. A role of the operator's drops what begins so; it is read with a token of the same name (docs/vault.md).
 *
 * Answers when Vault says that the target has done it.
 */
export async function sweep(server: Open, { name, role, path }: Sweep, signal: AbortSignal): Promise<void> {
  const { client_token: token, accessor } = await createToken(server, role, name, 'settle', signal, {
    explicit_max_ttl: '60s',
    meta: { leasehold_sweep: name },
  });
  if (typeof token !== 'string' || !isAccessor(accessor)) {
    throw new BrokerError(
      'PROVIDER_UNAVAILABLE',
      `the token role ${role} at Vault server ${server.name} gives no token`,
    );
  }
  try {
    await server.client.call({
      method: 'GET',
      path,
      token,
      lane: 'settle',
      signal,
      timeout: server.config.settleTimeout,
    });
  } catch (error) {
    if (asFailure(error)?.status !== 403) throw error;
    throw new BrokerError(
      'PROVIDER_UNAVAILABLE',
      `Vault server ${server.name} does not allow ${path}: an operator has to add it to the policy of token role ${role}`,
      { cause: error },
    );
  } finally {
    // It has nothing but the lease of the sweep, and a minute to live.
    await endToken(server, accessor, signal).catch(() => undefined);
  }
}

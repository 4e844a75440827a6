import { BrokerError } from '../../domain/errors.ts';
import type { Interceptor } from './interceptor.ts';

/** The contract's own statement of who may call (leasehold/v1/options.proto), enforced before the handler. */
export const access: Interceptor = ({ roles, desc }, next) => {
  const refusal = `${desc.name} needs the role ${roles.join(' or ')}. Ask an operator to grant it to this workload.`;
  return (exchange) => {
    const held = exchange.caller.roles;
    for (const role of roles) if (held.has(role)) return next(exchange);
    throw new BrokerError('ROLE_REQUIRED', refusal, { metadata: { roles: roles.join(',') } });
  };
};

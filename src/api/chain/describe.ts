import type { DescMessage, DescMethod } from '@bufbuild/protobuf';
import { getOption, hasOption } from '@bufbuild/protobuf';
import type { Role } from '../../domain/caller.ts';
import { Role as WireRole, access, max_message_bytes } from '../../gen/leasehold/v1/options_pb.js';
import type { AnyStreamHandler, AnyUnaryHandler, Service } from '../call.ts';
import type { Validate } from './validate.ts';
import { compileValidator } from './validate.ts';

/** All that the chain needs of one RPC, read from its descriptor once. */
export interface Method {
  readonly desc: DescMethod;
  /** `leasehold.v1.TaskService/OpenTask`; bounded set, so that it may be a metric label. */
  readonly name: string;
  /** As in the HTTP/2 `:path`. */
  readonly path: string;
  readonly kind: 'unary' | 'server_streaming';
  readonly roles: readonly Role[];
  /** Most bytes of one message where the doors' bound is less; 0 when theirs holds. */
  readonly maxMessageBytes: number;
  readonly input: DescMessage;
  readonly output: DescMessage;
  readonly validate: Validate;
  readonly handler: AnyUnaryHandler | AnyStreamHandler;
}

const roleOf: Readonly<Partial<Record<WireRole, Role>>> = {
  [WireRole.ORCHESTRATOR]: 'orchestrator',
  [WireRole.AGENT]: 'agent',
  [WireRole.RESOURCE_SERVER]: 'resource_server',
  [WireRole.OPERATOR]: 'operator',
  [WireRole.AUDITOR]: 'auditor',
  [WireRole.APPROVER]: 'approver',
  [WireRole.SIGNAL_SOURCE]: 'signal_source',
};

/** Throws when an RPC says not who may call it, or has no handler: such a contract must not be served. */
export function describe(services: readonly Service[]): Method[] {
  return services.flatMap((service) => service.desc.methods.map((method) => describeMethod(method, service)));
}

function describeMethod(desc: DescMethod, service: Service): Method {
  const name = `${desc.parent.typeName}/${desc.name}`;
  const handler = service.handlers[desc.localName];
  if (handler === undefined) throw new Error(`${name} has no handler.`);
  if (desc.methodKind !== 'unary' && desc.methodKind !== 'server_streaming') {
    throw new Error(`${name} is ${desc.methodKind}; only unary and server-streaming RPCs can be served.`);
  }
  return {
    desc,
    name,
    path: `/${name}`,
    kind: desc.methodKind,
    roles: rolesOf(desc, name),
    maxMessageBytes: hasOption(desc, max_message_bytes) ? getOption(desc, max_message_bytes) : 0,
    input: desc.input,
    output: desc.output,
    validate: compileValidator(desc.input),
    handler,
  };
}

function rolesOf(desc: DescMethod, name: string): readonly Role[] {
  const declared = hasOption(desc, access) ? getOption(desc, access).roles : [];
  if (declared.length === 0) {
    throw new Error(`${name} does not declare who may call it: give it the option (leasehold.v1.access).`);
  }
  return declared.map((role) => {
    const known = roleOf[role];
    if (known === undefined) throw new Error(`${name} declares a role that is never granted (number ${role}).`);
    return known;
  });
}

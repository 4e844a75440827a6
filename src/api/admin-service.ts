import { durationFromMs, timestampFromMs } from '@bufbuild/protobuf/wkt';
import { isId } from '../domain/ids.ts';
import { tiers } from '../domain/model.ts';
import type { PolicySource } from '../domain/policy.ts';
import type { LeaseStore } from '../domain/store.ts';
import type { Clock, Instant } from '../domain/time.ts';
import { AdminService } from '../gen/leasehold/v1/admin_service_pb.js';
import { service } from './call.ts';
import { kindMessage, leaseForOperators, leaseStateOf, tierMessage } from './convert.ts';
import { nextPageToken, pageSize, pageToken, taskIdField } from './fields.ts';

export interface Component {
  name: string;
  ready: boolean;
  detail: string;
}

export interface AdminServiceOptions {
  clock: Clock;
  version: string;
  replicaId: string;
  startedAt: Instant;
  schemaVersion: number;
  policy: PolicySource;
  leases: LeaseStore;
  components: (tenant: string) => Promise<Component[]>;
}

export function adminService(options: AdminServiceOptions) {
  const { clock, policy, leases } = options;
  return service(AdminService, {
    getStatus: async (_request, { caller: { tenant } }) => {
      const components = await options.components(tenant);
      const counts = await leases.counts(tenant);
      return {
        version: options.version,
        replicaId: options.replicaId,
        startTime: timestampFromMs(options.startedAt),
        ready: components.every((component) => component.ready || component.name.startsWith('provider/')),
        components,
        policyRevision: policy.current(tenant).digest,
        policyError: policy.lastError(tenant) ?? '',
        schemaVersion: options.schemaVersion,
        openLeases: BigInt(counts.open),
        troubledLeases: BigInt(counts.troubled),
      };
    },

    listLeases: async (request, { caller }) => {
      const page = await leases.list({
        tenant: caller.tenant,
        ...(request.taskId === '' ? {} : { taskId: taskIdField(request.taskId) }),
        states: request.states.map((state, index) => leaseStateOf(`states[${index}]`, state)),
        troubled: request.troubled,
        abandoned: request.abandoned,
        pageSize: pageSize(request.pageSize, 50),
        after: pageToken(request.pageToken, (id) => isId('lse', id)),
      });
      return {
        leases: page.items.map((lease) => leaseForOperators(lease, clock.now())),
        nextPageToken: nextPageToken(page.next),
      };
    },

    listTools: (_request, { caller }) => ({
      tools: [...policy.current(caller.tenant).tools.values()]
        .sort((a, b) => (a.name < b.name ? -1 : 1))
        .map((tool) => ({
          name: tool.name,
          owner: tool.owner,
          resource: tool.resource,
          description: tool.description,
          tiers: tiers.flatMap((tier) => {
            const registered = tool.tiers[tier];
            if (registered === undefined) return [];
            return {
              tier: tierMessage(tier),
              provider: registered.provider,
              revocationKind: kindMessage(registered.revocation),
              defaultTtl: durationFromMs(registered.ttl.default),
              maxTtl: durationFromMs(registered.ttl.max),
            };
          }),
        })),
    }),
  });
}

import { LRUCache } from 'lru-cache';
import type { Task } from '../domain/model.ts';
import type { TaskStore, Wake } from '../domain/store.ts';

/**
 * Open tasks as this replica last saw them. A stale one is harmless: every write names the epoch that it was decided
 * under, and a refused write looks again.
 */
export function createTaskCache(tasks: Pick<TaskStore, 'get'>, wake: Wake, max: number) {
  const cache = new LRUCache<string, Task>({ max });
  const key = (tenant: string, taskId: string) => `${tenant} ${taskId}`;
  wake.onTask((tenant, taskId) => cache.delete(key(tenant, taskId)));

  const refresh = async (tenant: string, taskId: string): Promise<Task | undefined> => {
    const task = await tasks.get(tenant, taskId);
    if (task?.state === 'open') cache.set(key(tenant, taskId), task);
    else cache.delete(key(tenant, taskId));
    return task;
  };

  return {
    get: (tenant: string, taskId: string) => cache.get(key(tenant, taskId)) ?? refresh(tenant, taskId),
    refresh,
  };
}
